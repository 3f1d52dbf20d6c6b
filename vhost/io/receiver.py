# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The reading half of a blocking server: one call of the C core waits for bytes, takes them, and answers what
always has the same answer.
"""

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

from vhost._core import ffi, lib
from vhost.io.sockets import HasFileno

__all__ = ("Receiver", "Standing")

_STOPPED: Final[int] = lib.VH_STREAM_STOPPED


class Standing:
    """Requests without payload and the answers they get whenever they come.

    :param answers: pairs of a request of 12 bytes and its answer of at most 32.
    """

    def __init__(self, answers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.cdata: Any = ffi.new("struct vh_standing[]", len(answers))
        for entry, (request, answer) in zip(self.cdata, answers, strict=True):
            entry.request, entry.length = request, len(answer)
            ffi.memmove(entry.answer, answer, len(answer))


class Receiver:
    """Reads a socket for blocking code, until something else ends the wait.

    :param size: bytes to take at most in one read.
    :param stop: give up when this becomes readable.
    """

    def __init__(self, sock: socket.socket, size: int, stop: HasFileno | None = None) -> None:
        self._data = ffi.new("uint8_t[]", size)
        self._view = ffi.buffer(self._data)
        self._stream = ffi.new("struct vh_stream *")
        self._stream.fd = sock.fileno()
        self._stream.stop = -1 if stop is None else stop.fileno()
        self._stream.size, self._stream.data = size, self._data
        self._standing: Standing | None = None

    def receive(self, standing: Standing | None = None) -> tuple[bytes, list[int]] | None:
        """Wait for bytes; None once `stop` is readable. Otherwise like :func:`recv_fds`.

        :param standing: what comes alone and has an answer here is answered, and not returned.
        :raises OSError: as the system reports it.
        """
        stream = self._stream
        if standing is not self._standing:
            self._standing = standing
            stream.standing = ffi.NULL if standing is None else standing.cdata
            stream.n_standing = 0 if standing is None else len(standing.cdata)
        while (n := lib.vh_stream_receive(stream)) < 0:
            if n == _STOPPED:
                return None
            if n != -errno.EINTR:
                raise OSError(-n, os.strerror(-n))
        count = stream.n_fds
        return self._view[:n], (ffi.unpack(stream.fds, count) if count else [])
