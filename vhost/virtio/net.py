# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The wire format of network devices (virtio 1.3, 5.1): features, and the header in front of every frame."""

import enum
import struct
from typing import Final, NamedTuple, Self

__all__ = ("MTU_MAX", "MTU_MIN", "ConfigSpace", "HeaderFlag", "Gso", "NetFeature", "NetHeader", "header_size")

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
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22


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


class NetHeader(NamedTuple):
    """The header of a frame (5.1.6)."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def pack(self, size: int = _LAYOUT.size) -> bytes:
        """The first `size` bytes: 12, or 10 without `num_buffers`."""
        return _LAYOUT.pack(*self)[:size]

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From 12 bytes, or from 10 without `num_buffers`, which is 0 then."""
        return cls._make(_LAYOUT.unpack(data[: _LAYOUT.size].ljust(_LAYOUT.size, b"\0")))


class ConfigSpace(NamedTuple):
    """The configuration space, as far as it is used here (5.1.4)."""

    mac: bytes
    status: int
    max_virtqueue_pairs: int
    mtu: int

    def pack(self) -> bytes:
        """The 12 bytes of it."""
        return _CONFIG.pack(*self)


def header_size(features: int) -> int:
    """Bytes of the header, given all negotiated features (5.1.6.1)."""
    return 12 if features & (_VERSION_1 | NetFeature.MRG_RXBUF) else 10
