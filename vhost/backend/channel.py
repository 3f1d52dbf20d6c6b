# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The socket on which the back-end asks, its end of it: vhost-user.rst, «Back-end message types»."""

import array
import fcntl
import os
import select
import socket
import termios
from typing import Final

from vhost.errors import RemoteProtocolError
from vhost.protocol import BackendMessage, Channel, Connection, Quirks, Side

__all__ = ("RequestChannel", "Watch")

_SIZE: Final = 4096


class Watch:
    """A descriptor that is readable while a channel has something to do, whichever channel that is."""

    def __init__(self) -> None:
        self._epoll = select.epoll(sizehint=1)

    def fileno(self) -> int:
        """The descriptor: the same until closed."""
        return self._epoll.fileno()

    def add(self, sock: socket.socket) -> None:
        """Watch for what comes."""
        self._epoll.register(sock, select.EPOLLIN)

    def room(self, sock: socket.socket, wanted: bool) -> None:
        """Watch for room to send, or do not any more."""
        self._epoll.modify(sock, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def remove(self, sock: socket.socket) -> None:
        """Forget the socket, which is closed now."""
        self._epoll.unregister(sock)

    def close(self) -> None:
        """Give the descriptor back."""
        self._epoll.close()


class RequestChannel:
    """Sends requests that want no answer, never waits, and holds back at most a part of one of them.

    :param fd: from SET_BACKEND_REQ_FD, taken over.
    :param watch: is readable when :meth:`take` should be called.
    :param quirks: how far to go along with the front-end.
    :raises RemoteProtocolError: it is no stream socket.

    Synchronization: none.
    """

    def __init__(self, fd: int, watch: Watch, quirks: Quirks) -> None:
        try:
            self._sock = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise RemoteProtocolError(f"the descriptor for back-end requests: {error.strerror}") from error
        if self._sock.type != socket.SOCK_STREAM:
            self._sock.close()
            raise RemoteProtocolError("the descriptor for back-end requests is no stream socket")
        self._sock.setblocking(False)
        self._connection = Connection(Channel.BACKEND, Side.REQUESTER, quirks=quirks)
        self._watch = watch
        self._rest = b""  # of a request of which a part has gone
        self._crowded = False
        watch.add(self._sock)

    def send(self, message: BackendMessage, features: int, protocol_features: int) -> bool:
        """Send a request; False: there is no room, and :meth:`take` is called when there is.

        :param features: what is negotiated now; :param protocol_features: likewise.
        """
        if self._flush():
            self._connection.features = features
            self._connection.protocol_features = protocol_features
            data, _ = self._connection.send(message, need_reply=False)
            sent = self._write(data)
            if sent:
                self._rest = data[sent:]
                self._want_room(bool(self._rest))
                return True
        self._want_room(True)
        return False

    def take(self) -> bool:
        """Throw away what came, as nothing was asked for an answer; False: the front-end has gone."""
        try:
            if not self._sock.recv(_SIZE):
                return False
        except BlockingIOError:
            pass
        except OSError:
            return False
        self._want_room(not self._flush())
        return True

    @property
    def read(self) -> bool:
        """Whether the front-end has read all that was sent."""
        unread = array.array("i", [0])
        fcntl.ioctl(self._sock, termios.TIOCOUTQ, unread)
        return not self._rest and not unread[0]

    def close(self) -> None:
        """Send no more."""
        self._watch.remove(self._sock)
        self._sock.close()

    def _flush(self) -> bool:
        if self._rest:
            self._rest = self._rest[self._write(self._rest) :]
        return not self._rest

    def _write(self, data: bytes) -> int:
        try:
            return self._sock.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # the front-end has gone, which take() finds out

    def _want_room(self, wanted: bool) -> None:
        if wanted != self._crowded:
            self._crowded = wanted
            self._watch.room(self._sock, wanted)
