# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Messages for live migration and recovery: dirty log, postcopy, inflight regions, device state."""

from typing import Self

from vhost.protocol.features import ProtocolFeature as F
from vhost.protocol.message import Empty, Payload, ReplyRule, message
from vhost.protocol.payloads import DeviceStateReply, Inflight, LogBase, decode_inflight
from vhost.protocol.terms import Gate, Terms

from .base import FrontendMessage

__all__ = (
    "SetLogBase",
    "SetLogFd",
    "PostcopyAdvise",
    "PostcopyListen",
    "PostcopyEnd",
    "GetInflightFd",
    "SetInflightFd",
    "SetDeviceStateFd",
    "CheckDeviceState",
)

_POSTCOPY = Gate(protocol=int(F.PAGEFAULT), without=int(F.CONFIGURE_MEM_SLOTS))


@message(6, "SET_LOG_BASE", "QQ", fds=1, reply=LogBase, gate=F.LOG_SHMFD)
class SetLogBase(FrontendMessage):
    """Hands over the dirty log: *size* bytes at *offset* of the descriptor."""

    size: int
    offset: int

    @classmethod
    def rule_of_kind(cls, terms: Terms) -> ReplyRule:
        # Without LOG_SHMFD it is another message, which takes no answer: nobody would read one.
        return ReplyRule.VALUE if terms.protocol_features & F.LOG_SHMFD else ReplyRule.ACK

    def decode_reply(self, data: bytes, terms: Terms) -> Payload:
        if terms.quirks.log_base_reply and len(data) != LogBase.layout.size:
            return LogBase(self.size, self.offset)
        return FrontendMessage.decode_reply(self, data, terms)


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


@message(
    42, "SET_DEVICE_STATE_FD", "II", fds=1, reply=DeviceStateReply, reply_fds=(0, 1), gate=F.DEVICE_STATE
)
class SetDeviceStateFd(FrontendMessage):
    """Begins the transfer of device state: *direction* 0 save, 1 load; *phase* 0, device stopped."""

    direction: int
    phase: int = 0

    def reply_fd_range(self, value: Payload) -> tuple[int, int]:
        return (0, 0) if isinstance(value, DeviceStateReply) and value.no_fd else (1, 1)

    def code(self, value: Payload, fds: int) -> int:
        return value.error if isinstance(value, DeviceStateReply) else 1

    @classmethod
    def failure(cls, code: int) -> Payload:
        return DeviceStateReply(code & 0xFF or 1)


@message(43, "CHECK_DEVICE_STATE", reply=ReplyRule.STATUS, gate=F.DEVICE_STATE)
class CheckDeviceState(FrontendMessage):
    """Asks whether the transfer of device state succeeded."""
