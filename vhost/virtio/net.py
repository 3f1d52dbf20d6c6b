# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The wire format of network devices (virtio 1.3, 5.1): features, the header of a frame, control commands."""

import enum
import struct
from typing import Final, NamedTuple, Self

__all__ = (
    "MTU_MAX",
    "MTU_MIN",
    "Ack",
    "AnnounceCommand",
    "ConfigSpace",
    "ControlClass",
    "Gso",
    "HeaderFlag",
    "MacCommand",
    "MqCommand",
    "NetFeature",
    "NetHeader",
    "RxCommand",
    "Status",
    "VlanCommand",
    "header_size",
    "mac_tables",
)

_VERSION_1: Final = 1 << 32

#: Bytes of the largest packet that a device may name (5.1.4.1).
MTU_MIN, MTU_MAX = 68, 65535


class NetFeature(enum.IntFlag):
    """Feature bits of device type 1 (5.1.3)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23


class Status(enum.IntFlag):
    """The field `status` of the configuration space (5.1.4)."""

    LINK_UP = 1
    ANNOUNCE = 2


class ControlClass(enum.IntEnum):
    """The first byte of a command in the control queue (5.1.6.5); the second is the command."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4


class RxCommand(enum.IntEnum):
    """Modes of receiving (5.1.6.5.1); a byte follows that switches one on (1) or off (0)."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


class MacCommand(enum.IntEnum):
    """What to receive by address (5.1.6.5.2)."""

    TABLE_SET = 0
    ADDR_SET = 1


class VlanCommand(enum.IntEnum):
    """What to receive by VLAN (5.1.6.5.3); its number of 16 bits follows."""

    ADD = 0
    DEL = 1


class AnnounceCommand(enum.IntEnum):
    """The guest has announced itself (5.1.6.5.4)."""

    ACK = 0


class MqCommand(enum.IntEnum):
    """Queues in use (5.1.6.5.5); the number of pairs, of 16 bits, follows."""

    VQ_PAIRS_SET = 0


class Ack(enum.IntEnum):
    """The device's answer to a command (5.1.6.5)."""

    OK = 0
    ERR = 1


class HeaderFlag(enum.IntFlag):
    """Flags of a header (5.1.6)."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4


class Gso(enum.IntEnum):
    """Kinds of segmentation that a header asks for (5.1.6); ECN is a flag beside them."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5
    ECN = 0x80


_CONFIG: Final = struct.Struct("<6sHHH")
_LAYOUT: Final = struct.Struct("<BBHHHHH")
_BIG_LAYOUT: Final = struct.Struct(">BBHHHHH")


class NetHeader(NamedTuple):
    """The header of a frame (5.1.6); with legacy drivers on big-endian machines its fields are so too."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def pack(self, size: int = _LAYOUT.size, *, big_endian: bool = False) -> bytes:
        """The first `size` bytes: 12, or 10 without `num_buffers`."""
        return (_BIG_LAYOUT if big_endian else _LAYOUT).pack(*self)[:size]

    @classmethod
    def unpack(cls, data: bytes, *, big_endian: bool = False) -> Self:
        """From 12 bytes, or from 10 without `num_buffers`, which is 0 then."""
        layout = _BIG_LAYOUT if big_endian else _LAYOUT
        return cls._make(layout.unpack(data[: layout.size].ljust(layout.size, b"\0")))


class ConfigSpace(NamedTuple):
    """The configuration space, as far as it is used here (5.1.4)."""

    mac: bytes
    status: int
    max_virtqueue_pairs: int
    mtu: int

    def pack(self) -> bytes:
        """The 12 bytes of it."""
        return _CONFIG.pack(*self)


def mac_tables(data: bytes, *, big_endian: bool) -> tuple[bytes, bytes]:
    """The addresses of MAC_TABLE_SET, 6 bytes each: of stations, and of groups (5.1.6.5.2).

    :raises ValueError: `data` is longer or shorter than its numbers of addresses say.
    """
    tables, at = [], 0
    for _ in range(2):
        count = int.from_bytes(data[at : at + 4], "big" if big_endian else "little")
        at += 4
        if at + 6 * count > len(data):
            raise ValueError(f"{count} addresses in {max(len(data) - at, 0)} bytes")
        tables.append(data[at : at + 6 * count])
        at += 6 * count
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind the addresses")
    return tables[0], tables[1]


def header_size(features: int) -> int:
    """Bytes of the header, given all negotiated features (5.1.6.1)."""
    return 12 if features & (_VERSION_1 | NetFeature.MRG_RXBUF) else 10
