# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The frontend's end of the socket on which a backend asks: vhost-user.rst, «Back-end message types»."""

import socket
from collections.abc import Callable
from typing import Final

from vhost.io import recv_fds, send_fds
from vhost.protocol import Channel, Closed, Connection, Message, Request, Side

__all__ = ("BackendChannel",)

_SIZE: Final = 4096


class BackendChannel:
    """A socket pair: one end goes to the backend with SET_BACKEND_REQ_FD, the other is answered here.

    :param answer: what to do about a request; 0, or the error to acknowledge it with.
    :param features: negotiated virtio features; :param protocol_features: likewise, protocol features.

    :ivar theirs: the backend's end, to be closed once it was handed over.
    """

    def __init__(self, answer: Callable[[Message], int], features: int, protocol_features: int) -> None:
        self._answer = answer
        self._connection = Connection(Channel.BACKEND, Side.RESPONDER)
        self._connection.features = features
        self._connection.protocol_features = protocol_features
        self._out = b""
        self._sock, self.theirs = socket.socketpair()
        self._sock.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to wait for, -1 once the backend has closed its end."""
        return self._sock.fileno()

    def serve(self) -> None:
        """Answer what was asked, without waiting.

        :raises RemoteProtocolError: the backend broke the protocol.
        """
        if self._sock.fileno() < 0:
            return
        try:
            # A backend that reads no answers is asked for no questions.
            self._flush()
            # One read, or a backend that always has something to ask would keep us from all else.
            self._connection.receive(*recv_fds(self._sock, _SIZE))
        except BlockingIOError:
            return
        except ConnectionError:
            self._connection.receive(b"")
        while (event := self._connection.next_event()) is not None:
            if isinstance(event, Closed):
                self.close()
                return
            code = self._answer(event.message) if isinstance(event, Request) else 1
            answer = self._connection.ack(event, code)  # type: ignore[arg-type]
            if answer is not None:
                self._out += answer[0]
        try:
            self._flush()
        except (BlockingIOError, ConnectionError):
            pass  # the next time, or then it has closed

    def _flush(self) -> None:
        while self._out:
            self._out = self._out[send_fds(self._sock, self._out, ()) :]

    def close(self) -> None:
        """Close both ends."""
        self._connection.close()
        self._sock.close()
        self.theirs.close()
