# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Messages about one ring: size, addresses, base, descriptors, enabling, in-band kicks."""

from typing import Self

from vhost.protocol.features import ProtocolFeature as F
from vhost.protocol.features import VirtioFeature
from vhost.protocol.message import U64, message, payload
from vhost.protocol.payloads import VringBase, pack_fd_word, unpack_fd_word
from vhost.protocol.terms import Gate, Terms

from .base import FrontendMessage

__all__ = (
    "SetVringNum",
    "SetVringAddr",
    "SetVringBase",
    "GetVringBase",
    "GetVringBaseSkipDrain",
    "SetVringKick",
    "SetVringCall",
    "SetVringErr",
    "SetVringEnable",
    "SetVringEndian",
    "VringKick",
)


@message(8, "SET_VRING_NUM", "II")
class SetVringNum(FrontendMessage):
    """Sets the size of a ring, in descriptors."""

    index: int
    num: int


@message(9, "SET_VRING_ADDR", "IIQQQQ")
class SetVringAddr(FrontendMessage):
    """Sets the addresses of the three parts of a ring; on the wire used comes before available."""

    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int = 0


@message(10, "SET_VRING_BASE", "II")
class SetVringBase(FrontendMessage):
    """Sets where a ring goes on, see VringBase."""

    index: int
    base: int


@message(11, "GET_VRING_BASE", "I4x", reply=VringBase)
class GetVringBase(FrontendMessage):
    """Stops a ring after what it has taken is done, and asks where it would go on."""

    index: int


@message(45, "GET_VRING_BASE_SKIP_DRAIN", "I4x", reply=VringBase, gate=F.GET_VRING_BASE_SKIP_DRAIN)
class GetVringBaseSkipDrain(FrontendMessage):
    """Stops a ring at once; what it has taken stays in the inflight region."""

    index: int


@payload("Q")
class _VringFd(FrontendMessage):
    """A descriptor for a ring; *no_fd*: none comes, the side that would wait for it polls."""

    index: int
    no_fd: bool = False

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(*unpack_fd_word(U64.decode(data, terms).value))

    def encode(self, terms: Terms) -> bytes:
        return self.layout.pack(pack_fd_word(self.index, self.no_fd))

    def fd_range(self) -> tuple[int, int]:
        return (0, 0) if self.no_fd else (1, 1)


@message(12, "SET_VRING_KICK", "Q", fds=(0, 1))
class SetVringKick(_VringFd):
    """Sets what the driver signals when buffers are available, and starts the ring."""


@message(13, "SET_VRING_CALL", "Q", fds=(0, 1))
class SetVringCall(_VringFd):
    """Sets what the device signals when buffers are used."""


@message(14, "SET_VRING_ERR", "Q", fds=(0, 1))
class SetVringErr(_VringFd):
    """Sets what the device signals when a ring is broken."""


@message(18, "SET_VRING_ENABLE", "II", gate=Gate(offered=int(VirtioFeature.PROTOCOL_FEATURES)))
class SetVringEnable(FrontendMessage):
    """Enables a ring with *num* 1, disables it with 0.

    It is for those who negotiated PROTOCOL_FEATURES; others send it too, and mean it.
    """

    index: int
    num: int

    @property
    def enabled(self) -> bool:
        """Whether the ring is to be enabled."""
        return self.num != 0


@message(23, "SET_VRING_ENDIAN", "II", gate=F.CROSS_ENDIAN)
class SetVringEndian(FrontendMessage):
    """Sets the byte order of a legacy ring: 0 little, 1 big."""

    index: int
    endian: int


@message(35, "VRING_KICK", "I4x", gate=F.INBAND_NOTIFICATIONS)
class VringKick(FrontendMessage):
    """Buffers are available; also starts the ring."""

    index: int
