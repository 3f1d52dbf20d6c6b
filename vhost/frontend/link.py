# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The socket to a backend: one request and its answer at a time, and whether the backend is still there."""

import errno
import socket
from collections.abc import Sequence

from vhost.errors import RefusedError, RemoteProtocolError
from vhost.io import close_fds
from vhost.protocol import U64, Channel, Connection, Flag, Header, Message, Payload, Reply, ReplyRule, Side

from .exchange import Exchange, Receive, Send

__all__ = ("Link",)


class Link:
    """A connected socket and the state of the conversation on it.

    An exchange that ends in anything but an answer leaves the conversation out of step: the link has ended
    then, and says why to whoever tries again.

    :param sock: belongs to the link from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._connection = Connection(Channel.FRONTEND, Side.REQUESTER)
        self._asking = False
        self._ended: str | None = None

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.sock.fileno()

    def exchange(self, message: Message, fds: Sequence[int] = ()) -> Exchange[Payload | None]:
        """Send a message and wait for its answer if one is due.

        :param fds: descriptors to go along; they stay open here.
        :returns: the answer's value, None if there is none or it only says that all is well.
        :raises RefusedError: the answer says that the request failed.
        :raises RemoteProtocolError: it is no answer.
        :raises LocalProtocolError: what was negotiated does not allow the message.
        :raises ConnectionError: the backend is gone.
        """
        if self._ended is not None:
            raise ConnectionAbortedError(errno.ECONNABORTED, f"{message.name} not sent: {self._ended}")
        rule = message.rule(self._connection.terms)
        data, riders = self._connection.send(message, fds)
        acked = bool(Header.unpack(data).flags & Flag.NEED_REPLY)
        self._asking = True
        try:
            yield Send(self.sock, data, riders, message.name)
            if not acked and rule not in (ReplyRule.VALUE, ReplyRule.STATUS):
                return None
            answer = yield from self._answer(message.name)
        except (BrokenPipeError, ConnectionResetError) as error:
            self._ended = f"the backend closed the connection at {message.name}"
            raise ConnectionResetError(errno.ECONNRESET, f"{self._ended}; see its log") from error
        except BaseException as error:
            if self.sock.fileno() < 0:
                raise ConnectionAbortedError(errno.ECONNABORTED, f"{message.name}: {self._ended}") from None
            self._ended = f"{message.name} ended with {type(error).__name__}: {error}"
            raise
        finally:
            self._asking = False
        if answer.code:
            raise RefusedError(message.name, answer.code)
        return answer.value if rule is ReplyRule.VALUE else None

    def _answer(self, name: str) -> Exchange[Reply]:
        while (event := self._connection.next_event()) is None:
            step = Receive(self.sock, self._connection.wanted(), name)
            try:
                yield step
            except BaseException:
                close_fds(step.fds)
                raise
            self._connection.receive(step.data, step.fds)
        if isinstance(event, Reply):
            return event
        raise ConnectionResetError

    def ask(self, message: Message) -> Exchange[int]:
        """Exchange a message whose answer is a number."""
        answer = yield from self.exchange(message)
        if not isinstance(answer, U64):
            raise self.out_of_step(f"{message.name} was answered with {answer}")
        return answer.value

    def out_of_step(self, why: str) -> RemoteProtocolError:
        """End the link because an answer makes no sense; returns the error to raise."""
        self._ended = why
        return RemoteProtocolError(why)

    def check(self) -> None:
        """Find out why the socket is readable, if nobody waits for an answer.

        :raises ConnectionResetError: the backend has closed it.
        :raises RemoteProtocolError: the backend sent what was not asked for.
        """
        if self._asking:
            return
        if self._ended is None:
            try:
                extra = self.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return
            except ConnectionResetError:
                extra = b""
            if extra:
                raise self.out_of_step("the backend sent an answer to nothing")
            self._ended = "the backend closed the connection with requests in flight"
        raise ConnectionResetError(errno.ECONNRESET, self._ended)

    def close(self) -> None:
        """Close the socket and whatever came with an answer that nobody took."""
        self._ended = "this side closed the connection"
        self._connection.close()
        self.sock.close()
