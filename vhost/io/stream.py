# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The socket of a blocking server: one call of the C core waits for a connection or for bytes, takes them,
and answers what always has the same answer.
"""

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, Final, Protocol

from vhost._core import ffi, lib
from vhost.io.sockets import HasFileno, send_all

__all__ = ("Standing", "Stream")

_STOPPED: Final[int] = lib.VH_STREAM_STOPPED
_OTHER: Final[int] = lib.VH_STREAM_OTHER


class HasReady(Protocol):
    """Has something to do whenever its descriptor is readable."""

    def fileno(self) -> int: ...

    def ready(self) -> None: ...


class Standing:
    """Requests without payload and the answers they get whenever they come.

    :param answers: pairs of a request of 12 bytes and its answer of at most 32.
    """

    def __init__(self, answers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.cdata: Any = ffi.new("struct vh_standing[]", len(answers))
        for entry, (request, answer) in zip(self.cdata, answers, strict=True):
            entry.request, entry.length = request, len(answer)
            ffi.memmove(entry.answer, answer, len(answer))


class Stream:
    """A connection, and after it perhaps another one, for blocking code, until something else ends the wait.

    :param size: bytes to take at most in one read.
    :param stop: give up when this becomes readable.
    """

    def __init__(self, size: int, stop: HasFileno | None = None) -> None:
        self._data = ffi.new("uint8_t[]", size)
        self._view = ffi.buffer(self._data)
        self._stop = stop
        self._stream = ffi.new("struct vh_stream *")
        self._stream.fd = -1
        self._stream.other = -1
        self._stream.stop = -1 if stop is None else stop.fileno()
        self._stream.size, self._stream.data = size, self._data
        self._standing: Standing | None = None

    def adopt(self, fd: int) -> None:
        """Take over a connected socket that does not block."""
        self._stream.fd = fd

    def accept(self, listener: HasFileno) -> bool:
        """Wait for a connection, which is this stream's from then on; False once `stop` is readable.

        :param listener: does not block.
        :raises OSError: as the system reports it.
        """
        fd = listener.fileno()
        while (result := lib.vh_stream_accept(self._stream, fd)) < 0:
            if result == _STOPPED:
                return False
            if result != -errno.EINTR:
                raise OSError(-result, os.strerror(-result))
        return True

    def receive(
        self, standing: Standing | None = None, other: HasReady | None = None
    ) -> tuple[bytes, list[int]] | None:
        """Wait for bytes; None once `stop` is readable. Otherwise like :func:`recv_fds`.

        :param standing: what comes alone and has an answer here is answered, and not returned.
        :param other: something else to attend to while nothing comes.
        :raises OSError: as the system reports it.
        """
        stream = self._stream
        if standing is not self._standing:
            self._standing = standing
            stream.standing = ffi.NULL if standing is None else standing.cdata
            stream.n_standing = 0 if standing is None else len(standing.cdata)
        stream.other = -1 if other is None else other.fileno()
        while (n := lib.vh_stream_receive(stream)) < 0:
            if n == _STOPPED:
                return None
            if n == _OTHER:
                assert other is not None
                other.ready()
                continue
            if n != -errno.EINTR:
                raise OSError(-n, os.strerror(-n))
        count = stream.n_fds
        return self._view[:n], (ffi.unpack(stream.fds, count) if count else [])

    def send(self, data: bytes, fds: Sequence[int] = (), *, timeout: float | None = None) -> bool:
        """Write all of `data`, with `fds` riding on its first byte; they stay open here.

        :param timeout: seconds the peer may leave it unread, None for no limit.
        :returns: False when `stop` ended it.
        :raises TimeoutError: the peer did not read for that long.
        :raises OSError: as the system reports it.
        """
        sent = lib.vh_stream_send(self._stream, data, len(data), fds or ffi.NULL, len(fds))
        if sent == len(data):
            return True
        if sent < 0 and sent not in (-errno.EAGAIN, -errno.EINTR):
            raise OSError(-sent, os.strerror(-sent))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self._stream.fd)
        try:
            rest, riding = (data, fds) if sent < 0 else (data[sent:], ())
            return send_all(sock, rest, riding, timeout=timeout, stop=self._stop)
        finally:
            sock.detach()

    def close(self) -> None:
        """Close the connection."""
        fd, self._stream.fd = self._stream.fd, -1
        if fd >= 0:
            os.close(fd)
