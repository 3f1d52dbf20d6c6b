# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The twelve bytes in front of every message, and the three sockets they travel on.

Integers are in the byte order of the host. Knows nothing of payloads.
"""

import enum
import struct
from typing import NamedTuple, Self

__all__ = ("Channel", "Side", "Flag", "Header", "HEADER_SIZE", "VERSION_MASK")

_STRUCT = struct.Struct("=III")
HEADER_SIZE = _STRUCT.size

VERSION_MASK = 0x3


class Channel(enum.Enum):
    """A socket: its name, the version in its headers, and the payload it takes if nothing else is said."""

    FRONTEND = ("front-end requests", 1, 4096)
    BACKEND = ("back-end requests", 1, 4096)
    GPU = ("GPU requests", 0, 64 << 20)  # UPDATE carries a rectangle of pixels

    def __init__(self, label: str, version: int, max_payload: int) -> None:
        self.label = label
        self.version = version  # 0: the two version bits mean nothing here
        self.max_payload = max_payload


class Side(enum.Enum):
    """Which end of a socket: the one that asks or the one that answers."""

    REQUESTER = enum.auto()
    RESPONDER = enum.auto()


class Flag(enum.IntFlag):
    """Bits of the flags word above the version."""

    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


class Header(NamedTuple):
    """Request code, flags with the version, and bytes of payload that follow."""

    request: int
    flags: int
    size: int

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Read the header at *offset* of *data*, which must hold all of it."""
        return cls._make(_STRUCT.unpack_from(data, offset))

    def pack(self) -> bytes:
        """The twelve bytes."""
        return _STRUCT.pack(*self)

    @property
    def version(self) -> int:
        """Protocol version, 1 on the sockets that have one."""
        return self.flags & VERSION_MASK
