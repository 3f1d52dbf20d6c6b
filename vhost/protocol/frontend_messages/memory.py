# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Messages about memory: the table of guest memory, the IOTLB, shared memory, shared objects."""

import struct
from typing import ClassVar, Self

from vhost.protocol.features import ProtocolFeature as F
from vhost.protocol.features import VirtioFeature
from vhost.protocol.message import U64, Payload, ReplyRule, message, payload
from vhost.protocol.payloads import SharedObject, ShmemConfig
from vhost.protocol.regions import MemoryRegion, MemTable, decode_regions, encode_regions
from vhost.protocol.terms import Gate, Terms

from .base import FrontendMessage

__all__ = (
    "SetMemTable",
    "GetMaxMemSlots",
    "AddMemReg",
    "RemMemReg",
    "IotlbMsg",
    "GetShmemConfig",
    "GetSharedObject",
)

_IOMMU = Gate(virtio=int(VirtioFeature.ACCESS_PLATFORM))


@message(5, "SET_MEM_TABLE", fds=(0, 32))
class SetMemTable(FrontendMessage):
    """Replaces all of guest memory; one descriptor per region."""

    regions: tuple[MemoryRegion, ...]
    reply_type: ClassVar[type[Payload]] = MemTable  # in postcopy; otherwise it is acknowledged

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(decode_regions(data, terms, cls.name))

    def encode(self, terms: Terms) -> bytes:
        if len(self.regions) > terms.max_regions:
            raise struct.error(f"{len(self.regions)} regions, more than {terms.max_regions}; use ADD_MEM_REG")
        return encode_regions(self.regions, terms)

    def fd_range(self) -> tuple[int, int]:
        return len(self.regions), len(self.regions)

    @classmethod
    def rule_of_kind(cls, terms: Terms) -> ReplyRule:
        return ReplyRule.VALUE if terms.postcopy else ReplyRule.ACK

    def rule(self, terms: Terms) -> ReplyRule:
        return self.rule_of_kind(terms) if self.regions else ReplyRule.ACK


@payload()
class _OneRegion(FrontendMessage):
    """A message with a single region behind eight bytes of padding."""

    region: MemoryRegion

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        size = 8 + MemoryRegion.wire_size(terms)
        if len(data) != size:
            wanted = str(size)
            if len(data) == 48:
                wanted += "; 48 need XEN_MMAP, which was not negotiated"
            raise cls.wrong_size(data, wanted)
        return cls(MemoryRegion.decode_from(data, 8, terms))

    def encode(self, terms: Terms) -> bytes:
        return bytes(8) + self.region.encode(terms)


@message(36, "GET_MAX_MEM_SLOTS", reply=U64, gate=F.CONFIGURE_MEM_SLOTS)
class GetMaxMemSlots(FrontendMessage):
    """Asks how many memory regions the back-end can hold."""


@message(37, "ADD_MEM_REG", fds=1, gate=F.CONFIGURE_MEM_SLOTS)
class AddMemReg(_OneRegion):
    """Adds one region to guest memory."""


@message(38, "REM_MEM_REG", gate=F.CONFIGURE_MEM_SLOTS)
class RemMemReg(_OneRegion):
    """Removes the region with this guest address, user address and size; its offset means nothing."""

    def stray_fds(self, terms: Terms) -> int:
        return 1 if terms.quirks.rem_mem_reg_fd else 0


@message(
    22, "IOTLB_MSG", "QQQBB6x", reply=ReplyRule.STATUS, gate=Gate(virtio=int(VirtioFeature.ACCESS_PLATFORM))
)
class IotlbMsg(FrontendMessage):
    """Updates or invalidates an IOTLB entry: *perm* is IotlbPerm, *type* IotlbType."""

    iova: int
    size: int
    user_addr: int
    perm: int
    type: int


@message(44, "GET_SHMEM_CONFIG", reply=ShmemConfig, gate=F.SHMEM)
class GetShmemConfig(FrontendMessage):
    """Asks for the sizes of the device's shared memory regions."""


@message(41, "GET_SHARED_OBJECT", "16s", reply=SharedObject, reply_fds=(0, 1), gate=F.SHARED_OBJECT)
class GetSharedObject(FrontendMessage):
    """Asks for the dmabuf that the back-end exports under this UUID."""

    uuid: bytes

    def decode_reply(self, data: bytes, terms: Terms) -> Payload:
        if terms.quirks.shared_object_echo and len(data) != SharedObject.layout.size:
            return SharedObject(self.uuid)
        return FrontendMessage.decode_reply(self, data, terms)

    def code(self, value: Payload, fds: int) -> int:
        return int(not fds)
