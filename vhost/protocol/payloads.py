# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Values inside messages and replies: bases, configuration, inflight, shared memory.

Layouts are those of vhost-user.rst, «Message types» and «Payload». Addresses and sizes are in bytes.
"""

import enum
import struct
from dataclasses import dataclass
from typing import Self

from vhost.errors import RemoteProtocolError

from .message import Payload, payload
from .quirks import Quirks
from .terms import Terms

__all__ = (
    "VringBase",
    "PackedBase",
    "LogBase",
    "ConfigReply",
    "Inflight",
    "DeviceStateReply",
    "SharedObject",
    "ShmemConfig",
    "CryptoSession",
    "IotlbType",
    "IotlbPerm",
    "VringFlag",
)


class IotlbType(enum.IntEnum):
    """What an IOTLB message is about."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class IotlbPerm(enum.IntFlag):
    """Access an IOTLB entry permits."""

    READ = 1
    WRITE = 2


class VringFlag(enum.IntFlag):
    """Flags of SET_VRING_ADDR."""

    LOG = 1


_NO_FD = 1 << 8


def pack_fd_word(index: int, no_fd: bool) -> int:
    """The word that names a ring and says whether its descriptor is missing."""
    if not 0 <= index <= 0xFF:
        raise struct.error(f"ring index {index} does not fit 8 bits")
    return index | _NO_FD * no_fd


def unpack_fd_word(word: int) -> tuple[int, bool]:
    """Ring index and whether the descriptor is missing."""
    return word & 0xFF, bool(word & _NO_FD)


@payload("II")
class VringBase(Payload):
    """Where a ring goes on: of a split ring the next avail index, of a packed one see :class:`PackedBase`."""

    index: int
    base: int


@dataclass(frozen=True, slots=True)
class PackedBase:
    """The base of a packed ring, taken apart: next avail and used index, each with its wrap counter."""

    avail: int
    avail_wrap: bool
    used: int
    used_wrap: bool

    @classmethod
    def of(cls, base: int, quirks: Quirks) -> Self:
        """Take the 32 bits of a base apart."""
        if base >> 16 == 0 and quirks.packed_base_16:
            base |= base << 16
        return cls(base & 0x7FFF, bool(base >> 15 & 1), base >> 16 & 0x7FFF, bool(base >> 31 & 1))

    def base(self) -> int:
        """The 32 bits for SET_VRING_BASE and its like."""
        return self.avail | self.avail_wrap << 15 | self.used << 16 | self.used_wrap << 31


@payload("QQ")
class LogBase(Payload):
    """Size and offset of the dirty log, repeated to the front-end."""

    size: int
    offset: int


_CONFIG = struct.Struct("=III")


def encode_config(offset: int, flags: int, data: bytes) -> bytes:
    """The bytes of a configuration payload."""
    return _CONFIG.pack(offset, len(data), flags) + data


def decode_config(data: bytes, name: str) -> tuple[int, int, bytes]:
    """Offset, flags and data of the configuration payload that is *data*.

    :raises RemoteProtocolError: the size inside and the size of the payload do not agree.
    """
    if len(data) < _CONFIG.size:
        raise RemoteProtocolError(
            f"{name} has a payload of {len(data)} bytes, not even its {_CONFIG.size} byte head"
        )
    offset, size, flags = _CONFIG.unpack_from(data)
    if len(data) != _CONFIG.size + size:
        raise RemoteProtocolError(f"{name} claims {size} bytes but carries {len(data) - _CONFIG.size}")
    return offset, flags, data[_CONFIG.size :]


@payload()
class ConfigReply(Payload):
    """Bytes of the configuration space from *offset*; no data means that the request failed."""

    offset: int
    flags: int
    data: bytes

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(*decode_config(data, cls.name)) if data else cls(0, 0, b"")

    def encode(self, terms: Terms) -> bytes:
        return encode_config(self.offset, self.flags, self.data) if self.data else b""


_INFLIGHT = struct.Struct("=QQHH4x")


def decode_inflight(data: bytes, terms: Terms, name: str) -> tuple[int, int, int, int]:
    """The four numbers of the inflight description that is *data*.

    :raises RemoteProtocolError: wrong size.
    """
    if len(data) == _INFLIGHT.size - 4 and terms.quirks.inflight_20:
        data += bytes(4)
    if len(data) != _INFLIGHT.size:
        raise RemoteProtocolError(f"{name} has a payload of {len(data)} bytes, not {_INFLIGHT.size}")
    mmap_size, mmap_offset, num_queues, queue_size = _INFLIGHT.unpack(data)
    return mmap_size, mmap_offset, num_queues, queue_size


@payload("QQHH4x")
class Inflight(Payload):
    """Where the inflight regions of all queues are in their file, and for what they were sized."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(*decode_inflight(data, terms, cls.name))


_STATE_NO_FD = 1 << 8


@payload("Q")
class DeviceStateReply(Payload):
    """Answer to SET_DEVICE_STATE_FD: *error* 0-255, and whether the front-end's own descriptor is used."""

    error: int
    no_fd: bool = True

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        if len(data) != cls.layout.size:
            raise cls.wrong_size(data, "8")
        (word,) = cls.layout.unpack(data)
        return cls(word & 0xFF, bool(word & _STATE_NO_FD))

    def encode(self, terms: Terms) -> bytes:
        if not 0 <= self.error <= 0xFF:
            raise struct.error(f"error {self.error} does not fit 8 bits")
        return self.layout.pack(self.error | _STATE_NO_FD * self.no_fd)


@payload("16s")
class SharedObject(Payload):
    """The UUID that was looked up; the descriptor that comes along, or does not, is the answer."""

    uuid: bytes


_SHMEM_IDS = 256


@payload("I4x256Q")
class ShmemConfig(Payload):
    """Sizes of the device's shared memory regions, by id; 0: no such region."""

    sizes: tuple[int, ...]

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        if len(data) != cls.layout.size:
            raise cls.wrong_size(data, str(cls.layout.size))
        count, *sizes = cls.layout.unpack(data)
        used = [shmid for shmid, size in enumerate(sizes) if size]
        if count != len(used):
            raise RemoteProtocolError(f"{cls.name} claims {count} regions but has sizes for {len(used)}")
        return cls(tuple(sizes[: used[-1] + 1] if used else ()))

    def encode(self, terms: Terms) -> bytes:
        used = sum(1 for size in self.sizes if size)
        return self.layout.pack(used, *self.sizes, *[0] * (_SHMEM_IDS - len(self.sizes)))


_SESSION_ID = struct.Struct("=q")
_SESSION_ID_OFFSET = 1064


@payload()
class CryptoSession(Payload):
    """A crypto session, a C structure of the hosts' ABI that is passed on as it is."""

    data: bytes

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(data)

    def encode(self, terms: Terms) -> bytes:
        return self.data

    @property
    def session_id(self) -> int:
        """Id of the session, negative for a failure; -1 if the structure is too short to hold one."""
        if len(self.data) < _SESSION_ID_OFFSET + _SESSION_ID.size:
            return -1
        return int(_SESSION_ID.unpack_from(self.data, _SESSION_ID_OFFSET)[0])
