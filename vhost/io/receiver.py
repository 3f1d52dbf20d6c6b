# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The reading half of a blocking server: waits for bytes and takes them in one call of the C core."""

import errno
import os
import socket

from vhost._core import ffi, lib
from vhost.io.sockets import HasFileno

__all__ = ("Receiver",)


class Receiver:
    """Reads a socket for blocking code, until something else ends the wait.

    :param size: bytes to take at most in one read.
    :param stop: give up when this becomes readable.
    """

    def __init__(self, sock: socket.socket, size: int, stop: HasFileno | None = None) -> None:
        self._data = ffi.new("uint8_t[]", size)
        self._view = ffi.buffer(self._data)
        self._stream = ffi.new(
            "struct vh_stream *",
            {
                "fd": sock.fileno(),
                "stop": -1 if stop is None else stop.fileno(),
                "size": size,
                "data": self._data,
            },
        )

    def receive(self) -> tuple[bytes, list[int]] | None:
        """Wait for bytes; None once `stop` is readable. Otherwise like :func:`recv_fds`.

        :raises OSError: as the system reports it.
        """
        stream = self._stream
        while (n := lib.vh_stream_receive(stream)) < 0:
            if n == lib.VH_STREAM_STOPPED:
                return None
            if n != -errno.EINTR:
                raise OSError(-n, os.strerror(-n))
        count = stream.n_fds
        return self._view[:n], (ffi.unpack(stream.fds, count) if count else [])
