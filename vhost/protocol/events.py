# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a connection reports: requests, rejects, replies, the end. Events own their descriptors."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from vhost.errors import LocalProtocolError, RemoteProtocolError

from .message import Message, Payload, ReplyRule

__all__ = ("Event", "Request", "Rejected", "Reply", "Closed", "close_all")


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; one that is no longer open is no reason to stop."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


@dataclass(slots=True, eq=False)
class Event:
    """Something that arrived. Descriptors not taken are closed when the next event is asked for."""

    _fds: list[int] = field(default_factory=list, repr=False, kw_only=True)

    @property
    def fd_count(self) -> int:
        """Descriptors still to be taken."""
        return len(self._fds)

    def take_fd(self) -> int:
        """Take the next descriptor; from here on the caller closes it.

        :raises LocalProtocolError: none is left.
        """
        if not self._fds:
            raise LocalProtocolError(
                f"{self} has no descriptor, or none left: ask fd_count first, and take in time"
            )
        return self._fds.pop(0)

    def take_fds(self) -> list[int]:
        """Take all descriptors that are left, in the order they came."""
        taken, self._fds = self._fds, []
        return taken

    def drop(self) -> None:
        """Close the descriptors that nobody took."""
        close_all(self.take_fds())


@dataclass(slots=True, eq=False)
class Request(Event):
    """A well-formed request that is allowed now.

    :param need_reply: an acknowledgement is due: the flag is set, REPLY_ACK is negotiated, and the message
        has no answer of its own.
    :param rule: the reply rule of this request.
    """

    message: Message
    need_reply: bool = False
    rule: ReplyRule = ReplyRule.NEVER
    answered: bool = field(default=False, repr=False)

    def __str__(self) -> str:
        fds = f" fds={self.fd_count}" if self.fd_count else ""
        return f"{self.message}{fds}{' need_reply' if self.need_reply else ''}"


@dataclass(slots=True, eq=False)
class Rejected(Event):
    """A request that cannot be served; the stream is in step and goes on. It has no descriptors.

    :param request: code in the header; *name* of the message, if it has one.
    :param need_reply: as in :class:`Request`.
    :param error: what was wrong with it.
    :param kind: its class, None if the code is unknown.
    """

    request: int
    name: str
    need_reply: bool
    error: RemoteProtocolError
    kind: type[Message] | None = None
    rule: ReplyRule = ReplyRule.NEVER
    answered: bool = field(default=False, repr=False)

    def __str__(self) -> str:
        return f"rejected {self.name}: {self.error}"


@dataclass(slots=True, eq=False)
class Reply(Event):
    """The answer to a request of ours.

    :param code: 0 if the peer did what was asked, else the failure it tells.
    """

    value: Payload
    message: Message
    code: int = 0

    def __str__(self) -> str:
        fds = f" fds={self.fd_count}" if self.fd_count else ""
        return (
            f"reply to {self.message.name}: {self.value}{fds}{f' failed ({self.code})' if self.code else ''}"
        )


@dataclass(slots=True, eq=False)
class Closed(Event):
    """The peer is gone, between two messages."""

    def __str__(self) -> str:
        return "closed by the peer"
