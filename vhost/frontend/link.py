# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The socket to a backend: one request and its answer at a time, and whether the backend is still there."""

import errno
import socket
from collections import deque
from collections.abc import Sequence

from vhost.errors import LocalProtocolError, RefusedError, RemoteProtocolError
from vhost.io import close_fds, recv_fds, send_fds
from vhost.protocol import (
    U64,
    Channel,
    Connection,
    Flag,
    Header,
    Message,
    Payload,
    Quirks,
    Reply,
    ReplyRule,
    Side,
)

from .channel import BackendChannel
from .exchange import Exchange, Receive, Send, Until

__all__ = ("Link",)


class Link:
    """A connected socket and the state of the conversation on it.

    An exchange that ends in anything but an answer leaves the conversation out of step: the link has ended
    then, and says why to whoever tries again.

    :param sock: belongs to the link from now on.
    :param quirks: how far to go along with the backend, None: as with one that is not known.

    :ivar channel: what the backend asks us, answered whenever something is waited for; closed with the link.
    """

    def __init__(self, sock: socket.socket, quirks: Quirks | None = None) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.channel: BackendChannel | None = None
        self._connection = Connection(Channel.FRONTEND, Side.REQUESTER, quirks=quirks)
        self._asking = False
        self._sending = False
        self._posts: deque[Message] = deque()
        self._rest = b""  # of the post that is being written
        self._ended: str | None = None

    def adopt(self, sock: socket.socket) -> None:
        """Put a connected socket in the place of one that never was."""
        sock.setblocking(False)
        self.sock.close()
        self.sock = sock

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.sock.fileno()

    @property
    def ended(self) -> bool:
        """Whether nothing can be exchanged any more."""
        return self._ended is not None

    @property
    def watched(self) -> tuple[int, ...]:
        """Descriptors to wait for along with anything else; :meth:`check` when one is readable."""
        if self.channel is None or self.channel.fileno() < 0:
            return (self.sock.fileno(),)
        return (self.sock.fileno(), self.channel.fileno())

    # ---- one request and its answer ------------------------------------------------------------------------

    def exchange(self, message: Message, fds: Sequence[int] = ()) -> Exchange[Payload | None]:
        """Send a message and wait for its answer if one is due.

        :param fds: descriptors to go along; they stay open here.
        :returns: the answer's value, None if there is none or it only says that all is well.
        :raises RefusedError: the answer says that the request failed.
        :raises RemoteProtocolError: it is no answer.
        :raises LocalProtocolError: what was negotiated does not allow the message.
        :raises ConnectionError: the backend is gone.
        """
        answer = yield from self._exchange(message, fds)
        return answer.value if answer is not None and self._rule(message) is ReplyRule.VALUE else None

    def fetch(self, message: Message, fds: Sequence[int] = ()) -> Exchange[tuple[Payload, int]]:
        """Exchange a message whose answer is a value and a descriptor, which is the caller's to close."""
        answer = yield from self._exchange(message, fds)
        if answer is None or not answer.fd_count:
            raise self.out_of_step(f"{message.name} was answered without a descriptor")
        return answer.value, answer.take_fd()

    def ask(self, message: Message) -> Exchange[int]:
        """Exchange a message whose answer is a number."""
        answer = yield from self.exchange(message)
        if not isinstance(answer, U64):
            raise self.out_of_step(f"{message.name} was answered with {answer}")
        return answer.value

    def _rule(self, message: Message) -> ReplyRule:
        return message.rule(self._connection.terms)

    def _exchange(self, message: Message, fds: Sequence[int]) -> Exchange[Reply | None]:
        if self._ended is not None:
            raise ConnectionAbortedError(errno.ECONNABORTED, f"{message.name} not sent: {self._ended}")
        self._asking = True
        try:
            if not self._flush():
                yield Until(self._flush, "the backend to read IOTLB_MSG", writes=(self.sock.fileno(),))
            rule = self._rule(message)
            self._sending = True
            data, riders = self._connection.send(message, fds)
            acked = bool(Header.unpack(data).flags & Flag.NEED_REPLY)
            yield Send(self.sock, data, riders, message.name)
            self._sending = False
            if not acked and rule not in (ReplyRule.VALUE, ReplyRule.STATUS):
                return None
            answer = yield from self._answer(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            self._ended = f"the backend closed the connection at {message.name}"
            raise ConnectionResetError(errno.ECONNRESET, f"{self._ended}; see its log") from error
        except LocalProtocolError:
            raise  # nothing was sent
        except BaseException as error:
            if self.sock.fileno() < 0:
                raise ConnectionAbortedError(errno.ECONNABORTED, f"{message.name}: {self._ended}") from None
            self._ended = f"{message.name} ended with {type(error).__name__}: {error}"
            raise
        finally:
            self._asking = self._sending = False
        if answer.code:
            raise RefusedError(message.name, answer.code)
        return answer

    def _answer(self, message: Message) -> Exchange[Reply]:
        while True:
            while (event := self._connection.next_event()) is None:
                size = self._connection.wanted()
                step = Receive(self.sock, size, message.name, self.attend, self.watched[1:])
                try:
                    yield step
                except BaseException:
                    close_fds(step.fds)
                    raise
                self._connection.receive(step.data, step.fds)
            if not isinstance(event, Reply):
                raise ConnectionResetError
            if event.message is message:
                return event
            self._settle(event)

    # ---- what is sent without waiting ----------------------------------------------------------------------

    def post(self, message: Message) -> None:
        """Send a message now or, if one is being written, behind it; its answer is read later."""
        self._posts.append(message)
        self._flush()

    def _flush(self) -> bool:
        while not self._sending and (self._rest or self._posts):
            if not self._rest:
                self._rest, _ = self._connection.send(self._posts.popleft())
            try:
                self._rest = self._rest[send_fds(self.sock, self._rest, ()) :]
            except BlockingIOError:
                return False
        return not self._rest

    @staticmethod
    def _settle(answer: Reply) -> None:
        if answer.code:
            raise RefusedError(answer.message.name, answer.code)

    def attend(self) -> None:
        """Answer what the backend asks, without waiting."""
        if self.channel is not None and self._ended is None:
            self.channel.serve()
            self._flush()

    # ---- between requests ----------------------------------------------------------------------------------

    def out_of_step(self, why: str) -> RemoteProtocolError:
        """End the link because an answer makes no sense; returns the error to raise."""
        self._ended = why
        return RemoteProtocolError(why)

    def check(self) -> None:
        """Answer what the backend asks; find out why the socket is readable, if nobody waits for an answer.

        :raises ConnectionResetError: the backend has closed it.
        :raises RemoteProtocolError: the backend sent what was not asked for.
        """
        self.attend()
        if self._asking and self._ended is None:
            return
        while self._ended is None:
            try:
                if not self._connection.pending:
                    extra = self.sock.recv(1, socket.MSG_PEEK)
                    if extra:
                        raise self.out_of_step("the backend sent an answer to nothing")
                self._connection.receive(*recv_fds(self.sock, self._connection.wanted()))
            except BlockingIOError:
                return
            except ConnectionResetError:
                self._connection.receive(b"")
            while (event := self._connection.next_event()) is not None:
                if not isinstance(event, Reply):
                    self._ended = "the backend closed the connection with requests in flight"
                    break
                self._settle(event)
        raise ConnectionResetError(errno.ECONNRESET, self._ended)

    def abandon(self, why: str) -> None:
        """End the conversation; whoever waits for the socket wakes up. It has still to be closed."""
        self._ended = self._ended or why
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is not connected any more, or was not yet

    def close(self) -> None:
        """Close the socket and whatever came with an answer that nobody took."""
        self._ended = self._ended or "this side closed the connection"
        self._connection.close()
        self.sock.close()
        if self.channel is not None:
            self.channel.close()
