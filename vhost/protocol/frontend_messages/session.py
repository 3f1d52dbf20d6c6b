# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Messages about the session: features, ownership, queues, status, and further sockets."""

from typing import ClassVar, Self

from vhost.protocol.features import ProtocolFeature as F
from vhost.protocol.features import VirtioFeature
from vhost.protocol.message import U64, Empty, Payload, message
from vhost.protocol.terms import Gate, Terms

from .base import FrontendMessage

__all__ = (
    "GetFeatures",
    "SetFeatures",
    "SetOwner",
    "ResetOwner",
    "GetProtocolFeatures",
    "SetProtocolFeatures",
    "GetQueueNum",
    "SetBackendReqFd",
    "GpuSetSocket",
    "ResetDevice",
    "SetStatus",
    "GetStatus",
)

_OFFERED = Gate(offered=int(VirtioFeature.PROTOCOL_FEATURES))


@message(1, "GET_FEATURES", reply=U64)
class GetFeatures(FrontendMessage):
    """Asks for the virtio features the back-end offers."""

    def settle_reply(self, value: Payload, terms: Terms) -> None:
        if isinstance(value, U64):
            terms.offered_features = int(value.value)


@message(2, "SET_FEATURES", "Q")
class SetFeatures(FrontendMessage):
    """Acknowledges virtio features."""

    features: int

    def settle(self, terms: Terms) -> None:
        terms.features = int(self.features)


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
            terms.offered_protocol_features = int(value.value)


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
        terms.protocol_features = int(self.features)


def _shmem_in(features: int, terms: Terms) -> int:
    if not terms.quirks.shmem_bit_21:
        return features
    return features & ~(F.GPA_ADDRESSES | F.SHMEM) | F.SHMEM * bool(features & F.GPA_ADDRESSES)


def _shmem_out(features: int, terms: Terms) -> int:
    if not terms.quirks.shmem_bit_21:
        return features
    return features & ~(F.GPA_ADDRESSES | F.SHMEM) | F.GPA_ADDRESSES * bool(features & F.SHMEM)


@message(17, "GET_QUEUE_NUM", reply=U64, gate=Gate(offered_protocol=int(F.MQ)))
class GetQueueNum(FrontendMessage):
    """Asks how many rings the back-end supports."""

    def decode_reply(self, data: bytes, terms: Terms) -> Payload:
        if not data:
            return Empty()
        number = U64.decode(data, terms).value
        return U64(2 * number if terms.quirks.queue_num_pairs else number)


@message(21, "SET_BACKEND_REQ_FD", fds=1, gate=Gate(offered_protocol=int(F.BACKEND_REQ)))
class SetBackendReqFd(FrontendMessage):
    """Hands over the socket for back-end requests."""


@message(33, "GPU_SET_SOCKET", fds=1)
class GpuSetSocket(FrontendMessage):
    """Hands over the GPU socket."""


@message(34, "RESET_DEVICE", gate=Gate(offered_protocol=int(F.RESET_DEVICE)))
class ResetDevice(FrontendMessage):
    """Disables all rings and puts the device into its first state; the owner stays."""


@message(39, "SET_STATUS", "Q", gate=F.STATUS)
class SetStatus(FrontendMessage):
    """Passes on the device status that the driver wrote."""

    status: int


@message(40, "GET_STATUS", reply=U64, gate=F.STATUS)
class GetStatus(FrontendMessage):
    """Asks for the device status."""
