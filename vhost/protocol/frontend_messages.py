# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The 45 messages a front-end sends: vhost-user.rst, «Front-end message types»."""

import struct
from typing import ClassVar, Self

from vhost.errors import RemoteProtocolError

from .features import ProtocolFeature as F
from .features import VirtioFeature
from .header import Channel
from .message import U64, Empty, Gate, Message, Payload, ReplyRule, Terms, message, payload
from .payloads import (
    ConfigReply,
    CryptoSession,
    DeviceStateReply,
    Inflight,
    LogBase,
    MemoryRegion,
    MemTable,
    SharedObject,
    ShmemConfig,
    VringBase,
    decode_config,
    decode_inflight,
    decode_regions,
    encode_config,
    encode_regions,
    pack_fd_word,
    unpack_fd_word,
)

__all__ = (
    "FrontendMessage",
    "GetFeatures",
    "SetFeatures",
    "SetOwner",
    "ResetOwner",
    "GetProtocolFeatures",
    "SetProtocolFeatures",
    "GetQueueNum",
    "SetMemTable",
    "GetMaxMemSlots",
    "AddMemReg",
    "RemMemReg",
    "IotlbMsg",
    "GetShmemConfig",
    "SetLogBase",
    "SetLogFd",
    "PostcopyAdvise",
    "PostcopyListen",
    "PostcopyEnd",
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
    "GetInflightFd",
    "SetInflightFd",
    "SendRarp",
    "NetSetMtu",
    "SetBackendReqFd",
    "GetConfig",
    "SetConfig",
    "CreateCryptoSession",
    "CloseCryptoSession",
    "GpuSetSocket",
    "ResetDevice",
    "SetStatus",
    "GetStatus",
    "GetSharedObject",
    "SetDeviceStateFd",
    "CheckDeviceState",
)

_VIRTIO_NET_F_MTU = VirtioFeature(1 << 3)
_OFFERED = Gate(offered=VirtioFeature.PROTOCOL_FEATURES)
_POSTCOPY = Gate(protocol=F.PAGEFAULT, without=F.CONFIGURE_MEM_SLOTS)


class FrontendMessage(Message):
    """A front-end request."""

    __slots__ = ()
    channel: ClassVar[Channel] = Channel.FRONTEND


# ---- features and ownership --------------------------------------------------------------------------------


@message(1, "GET_FEATURES", reply=U64)
class GetFeatures(FrontendMessage):
    """Asks for the virtio features the back-end offers."""

    def settle_reply(self, value: Payload, terms: Terms) -> None:
        if isinstance(value, U64):
            terms.offered_features = value.value


@message(2, "SET_FEATURES", "Q")
class SetFeatures(FrontendMessage):
    """Acknowledges virtio features."""

    features: int

    def settle(self, terms: Terms) -> None:
        terms.features = self.features


@message(3, "SET_OWNER")
class SetOwner(FrontendMessage):
    """Marks the sender as the front-end that owns the session."""


@message(4, "RESET_OWNER")
class ResetOwner(FrontendMessage):
    """Deprecated: once meant to disable all rings."""


@message(15, "GET_PROTOCOL_FEATURES", reply=U64, gate=_OFFERED)
class GetProtocolFeatures(FrontendMessage):
    """Asks for the protocol features the back-end offers."""

    def encode_reply(self, value: Payload, terms: Terms) -> bytes:
        return (
            U64(_shmem_out(value.value, terms)).encode(terms)
            if isinstance(value, U64)
            else value.encode(terms)
        )

    def decode_reply(self, data: bytes, terms: Terms) -> Payload:
        return U64(_shmem_in(U64.decode(data, terms).value, terms)) if data else Empty()

    def settle_reply(self, value: Payload, terms: Terms) -> None:
        if isinstance(value, U64):
            terms.offered_protocol_features = value.value


@message(16, "SET_PROTOCOL_FEATURES", "Q", gate=_OFFERED)
class SetProtocolFeatures(FrontendMessage):
    """Acknowledges protocol features."""

    features: int
    # REPLY_ACK may be what changes: back-ends differ on whether the old state or the new one counts.
    asks_ack: ClassVar[bool] = False

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(_shmem_in(U64.decode(data, terms).value, terms))

    def encode(self, terms: Terms) -> bytes:
        return self.layout.pack(_shmem_out(self.features, terms))

    def settle(self, terms: Terms) -> None:
        terms.protocol_features = self.features


def _shmem_in(features: int, terms: Terms) -> int:
    if not terms.quirks.shmem_bit_21:
        return features
    return features & ~(F.GPA_ADDRESSES | F.SHMEM) | F.SHMEM * bool(features & F.GPA_ADDRESSES)


def _shmem_out(features: int, terms: Terms) -> int:
    if not terms.quirks.shmem_bit_21:
        return features
    return features & ~(F.GPA_ADDRESSES | F.SHMEM) | F.GPA_ADDRESSES * bool(features & F.SHMEM)


@message(17, "GET_QUEUE_NUM", reply=U64, gate=F.MQ)
class GetQueueNum(FrontendMessage):
    """Asks how many queues the back-end supports."""


# ---- memory ------------------------------------------------------------------------------------------------


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

    def rule(self, terms: Terms) -> ReplyRule:
        return ReplyRule.VALUE if terms.postcopy and self.regions else ReplyRule.ACK


@payload()
class _OneRegion(FrontendMessage):
    """A message with a single region behind eight bytes of padding."""

    region: MemoryRegion

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        if len(data) != 8 + MemoryRegion.wire_size(terms):
            raise cls.wrong_size(data, str(8 + MemoryRegion.wire_size(terms)))
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


@message(22, "IOTLB_MSG", "QQQBB6x", reply=ReplyRule.STATUS, gate=Gate(virtio=VirtioFeature.ACCESS_PLATFORM))
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


# ---- dirty log and postcopy --------------------------------------------------------------------------------


@message(6, "SET_LOG_BASE", "QQ", fds=1, reply=LogBase, gate=F.LOG_SHMFD)
class SetLogBase(FrontendMessage):
    """Hands over the dirty log: *size* bytes at *offset* of the descriptor."""

    size: int
    offset: int

    def decode_reply(self, data: bytes, terms: Terms) -> Payload:
        if terms.quirks.log_base_reply and len(data) != LogBase.layout.size:
            return LogBase(self.size, self.offset)
        return LogBase.decode(data, terms)


@message(7, "SET_LOG_FD", fds=1)
class SetLogFd(FrontendMessage):
    """Hands over a descriptor to signal after the log was written."""


@message(28, "POSTCOPY_ADVISE", reply=Empty, reply_fds=1, gate=_POSTCOPY)
class PostcopyAdvise(FrontendMessage):
    """Announces postcopy and asks for a userfaultfd."""


@message(29, "POSTCOPY_LISTEN", gate=_POSTCOPY)
class PostcopyListen(FrontendMessage):
    """Postcopy begins: memory from now on is registered with the userfaultfd."""

    def settle(self, terms: Terms) -> None:
        terms.postcopy = True


@message(30, "POSTCOPY_END", reply=ReplyRule.STATUS, gate=_POSTCOPY)
class PostcopyEnd(FrontendMessage):
    """Postcopy is over."""

    def settle(self, terms: Terms) -> None:
        terms.postcopy = False


# ---- rings -------------------------------------------------------------------------------------------------


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


@message(18, "SET_VRING_ENABLE", "II", gate=Gate(virtio=VirtioFeature.PROTOCOL_FEATURES))
class SetVringEnable(FrontendMessage):
    """Enables a ring with *num* 1, disables it with 0."""

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


@message(31, "GET_INFLIGHT_FD", "QQHH4x", reply=Inflight, reply_fds=1, gate=F.INFLIGHT_SHMFD)
class GetInflightFd(FrontendMessage):
    """Asks the back-end for a region that records the requests it works on."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(*decode_inflight(data, terms, cls.name))


@message(32, "SET_INFLIGHT_FD", "QQHH4x", fds=1, gate=F.INFLIGHT_SHMFD)
class SetInflightFd(FrontendMessage):
    """Hands the inflight region back to a back-end that was started anew."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(*decode_inflight(data, terms, cls.name))


# ---- device ------------------------------------------------------------------------------------------------


@message(19, "SEND_RARP", "6s2x", gate=F.RARP)
class SendRarp(FrontendMessage):
    """Asks a network back-end to announce this MAC address after migration."""

    mac: bytes


@message(20, "NET_SET_MTU", "Q", gate=Gate(protocol=F.MTU, virtio=_VIRTIO_NET_F_MTU))
class NetSetMtu(FrontendMessage):
    """Tells a network back-end the MTU."""

    mtu: int


@message(21, "SET_BACKEND_REQ_FD", fds=1, gate=F.BACKEND_REQ)
class SetBackendReqFd(FrontendMessage):
    """Hands over the socket for back-end requests."""


@message(24, "GET_CONFIG", reply=ConfigReply, gate=F.CONFIG)
class GetConfig(FrontendMessage):
    """Asks for *size* bytes of the configuration space from *offset*."""

    offset: int
    size: int
    flags: int = 0

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        offset, flags, room = decode_config(data, cls.name)
        return cls(offset, len(room), flags)

    def encode(self, terms: Terms) -> bytes:
        return encode_config(self.offset, self.flags, bytes(self.size))

    def decode_reply(self, data: bytes, terms: Terms) -> Payload:
        value = ConfigReply.decode(data, terms)
        if data and not value.data and not terms.quirks.config_error_header:
            raise RemoteProtocolError(
                "the answer to GET_CONFIG has a head but no data; a failure has neither"
            )
        if value.data and (value.offset, len(value.data)) != (self.offset, self.size):
            raise RemoteProtocolError(f"GET_CONFIG asked for {self}, the answer is {value}")
        return value

    def code(self, value: Payload, fds: int) -> int:
        return int(isinstance(value, ConfigReply) and not value.data)

    @classmethod
    def failure(cls, code: int) -> Payload:
        return ConfigReply(0, 0, b"")


@message(25, "SET_CONFIG", gate=F.CONFIG)
class SetConfig(FrontendMessage):
    """Writes to the configuration space: *flags* 0 for a write of the guest, 1 for live migration."""

    offset: int
    flags: int
    data: bytes

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        offset, flags, content = decode_config(data, cls.name)
        if terms.quirks.set_config_flags and flags:
            flags -= 1
        return cls(offset, flags, content)

    def encode(self, terms: Terms) -> bytes:
        return encode_config(self.offset, self.flags, self.data)


@message(26, "CREATE_CRYPTO_SESSION", reply=CryptoSession, gate=F.CRYPTO_SESSION)
class CreateCryptoSession(FrontendMessage):
    """Opens a crypto session, described by a C structure of the hosts' ABI."""

    data: bytes

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(data)

    def encode(self, terms: Terms) -> bytes:
        return self.data

    def code(self, value: Payload, fds: int) -> int:
        return int(not isinstance(value, CryptoSession) or value.session_id < 0)


@message(27, "CLOSE_CRYPTO_SESSION", "Q", gate=F.CRYPTO_SESSION)
class CloseCryptoSession(FrontendMessage):
    """Closes a crypto session."""

    session_id: int


@message(33, "GPU_SET_SOCKET", fds=1)
class GpuSetSocket(FrontendMessage):
    """Hands over the GPU socket."""


@message(34, "RESET_DEVICE", gate=F.RESET_DEVICE)
class ResetDevice(FrontendMessage):
    """Disables all rings and puts the device into its first state; the owner stays."""


@message(39, "SET_STATUS", "Q", gate=F.STATUS)
class SetStatus(FrontendMessage):
    """Passes on the device status that the driver wrote."""

    status: int


@message(40, "GET_STATUS", reply=U64, gate=F.STATUS)
class GetStatus(FrontendMessage):
    """Asks for the device status."""


@message(41, "GET_SHARED_OBJECT", "16s", reply=SharedObject, reply_fds=(0, 1), gate=F.SHARED_OBJECT)
class GetSharedObject(FrontendMessage):
    """Asks for the dmabuf that the back-end exports under this UUID."""

    uuid: bytes

    def decode_reply(self, data: bytes, terms: Terms) -> Payload:
        if terms.quirks.shared_object_echo and len(data) != SharedObject.layout.size:
            return SharedObject(self.uuid)
        return SharedObject.decode(data, terms)

    def code(self, value: Payload, fds: int) -> int:
        return int(not fds)


@message(
    42, "SET_DEVICE_STATE_FD", "II", fds=1, reply=DeviceStateReply, reply_fds=(0, 1), gate=F.DEVICE_STATE
)
class SetDeviceStateFd(FrontendMessage):
    """Begins the transfer of device state: *direction* 0 save, 1 load; *phase* 0, device stopped."""

    direction: int
    phase: int = 0

    def code(self, value: Payload, fds: int) -> int:
        return value.error if isinstance(value, DeviceStateReply) else 1

    @classmethod
    def failure(cls, code: int) -> Payload:
        return DeviceStateReply(code & 0xFF or 1)


@message(43, "CHECK_DEVICE_STATE", reply=ReplyRule.STATUS, gate=F.DEVICE_STATE)
class CheckDeviceState(FrontendMessage):
    """Asks whether the transfer of device state succeeded."""
