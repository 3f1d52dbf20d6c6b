# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The 10 messages a back-end sends on the back-end request socket: vhost-user.rst, «Back-end message types».

All need BACKEND_REQ, without which the socket does not exist.
"""

from typing import ClassVar, Self

from .features import ProtocolFeature as F
from .features import VirtioFeature
from .header import Channel
from .message import Message, ReplyRule, message, payload
from .payloads import pack_fd_word, unpack_fd_word
from .terms import Gate, Terms

__all__ = (
    "BackendMessage",
    "BackendIotlbMsg",
    "ConfigChangeMsg",
    "VringHostNotifierMsg",
    "VringCall",
    "VringErr",
    "SharedObjectAdd",
    "SharedObjectRemove",
    "SharedObjectLookup",
    "ShmemMap",
    "ShmemUnmap",
)

_IOMMU = Gate(protocol=int(F.BACKEND_REQ), virtio=int(VirtioFeature.ACCESS_PLATFORM))


class BackendMessage(Message):
    """A back-end request."""

    __slots__ = ()
    channel: ClassVar[Channel] = Channel.BACKEND


@message(1, "IOTLB_MSG", "QQQBB6x", gate=_IOMMU)
class BackendIotlbMsg(BackendMessage):
    """Reports a miss or a failed access: *perm* is IotlbPerm, *type* IotlbType."""

    iova: int
    size: int
    user_addr: int
    perm: int
    type: int


@message(2, "CONFIG_CHANGE_MSG", gate=F.CONFIG | F.BACKEND_REQ)
class ConfigChangeMsg(BackendMessage):
    """The configuration space has changed."""


@message(3, "VRING_HOST_NOTIFIER_MSG", "QQQ", fds=(0, 1), gate=F.HOST_NOTIFIER | F.BACKEND_REQ)
class VringHostNotifierMsg(BackendMessage):
    """Offers, or with *no_fd* takes back, a doorbell page that the guest may write to."""

    index: int
    no_fd: bool
    size: int
    offset: int

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        if len(data) != cls.layout.size:
            raise cls.wrong_size(data, str(cls.layout.size))
        word, size, offset = cls.layout.unpack(data)
        return cls(*unpack_fd_word(word), size, offset)

    def encode(self, terms: Terms) -> bytes:
        return self.layout.pack(pack_fd_word(self.index, self.no_fd), self.size, self.offset)

    def fd_range(self) -> tuple[int, int]:
        return (0, 0) if self.no_fd else (1, 1)


@message(4, "VRING_CALL", "I4x", gate=F.INBAND_NOTIFICATIONS)
class VringCall(BackendMessage):
    """Buffers of a ring were used."""

    index: int


@message(5, "VRING_ERR", "I4x", gate=F.INBAND_NOTIFICATIONS)
class VringErr(BackendMessage):
    """A ring is broken."""

    index: int


@message(6, "SHARED_OBJECT_ADD", "16s", gate=F.SHARED_OBJECT | F.BACKEND_REQ)
class SharedObjectAdd(BackendMessage):
    """The back-end exports an object under this UUID."""

    uuid: bytes


@message(7, "SHARED_OBJECT_REMOVE", "16s", gate=F.SHARED_OBJECT | F.BACKEND_REQ)
class SharedObjectRemove(BackendMessage):
    """The back-end no longer exports the object."""

    uuid: bytes


@message(
    8,
    "SHARED_OBJECT_LOOKUP",
    "16s",
    reply=ReplyRule.STATUS,
    reply_fds=1,
    gate=F.SHARED_OBJECT | F.BACKEND_REQ,
)
class SharedObjectLookup(BackendMessage):
    """Asks for the dmabuf somebody else exports under this UUID; it comes with status 0."""

    uuid: bytes


@payload("B7xQQQQ")
class _ShmemMap(BackendMessage):
    """A piece of shared memory region *shmid*; *flags* 1: writable."""

    shmid: int
    fd_offset: int
    shm_offset: int
    size: int
    flags: int = 0


@message(9, "SHMEM_MAP", "B7xQQQQ", fds=1, gate=F.SHMEM | F.BACKEND_REQ)
class ShmemMap(_ShmemMap):
    """Maps *size* bytes from *fd_offset* of the descriptor at *shm_offset* of the region."""


@message(10, "SHMEM_UNMAP", "B7xQQQQ", gate=F.SHMEM | F.BACKEND_REQ)
class ShmemUnmap(_ShmemMap):
    """Takes one whole mapping back."""
