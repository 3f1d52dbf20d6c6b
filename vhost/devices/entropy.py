# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where the bytes of a random number generator come from.

A source is a callable: ``source(n)`` returns 1 to `n` bytes, or ``b""`` when it has none just now, and never
waits. :func:`os.getrandom` is one already.
"""

import os
from collections.abc import Callable

from vhost.errors import DeviceError

__all__ = ("Source", "FileSource", "SeededSource")

Source = Callable[[int], bytes]


class FileSource:
    """The bytes of a file or character device, such as ``/dev/urandom`` or ``/dev/hwrng``, in order.

    :param path: file to read.
    :raises OSError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        # A device without bytes must not hold up the ring that asks for them.
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def __call__(self, n: int) -> bytes:
        """
        :raises DeviceError: the file has ended: bytes that were given once are not given again.
        :raises OSError: as the system reports it.
        """
        try:
            data = os.read(self._fd, n)
        except BlockingIOError:
            return b""
        if not data:
            raise DeviceError(f"{self._path}: no more bytes; give a source that does not end")
        return data

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class SeededSource:
    """The same bytes for the same seed, for tests and reproducible guests: no secret to who knows the seed.

    The stream is the concatenation, over i = 0, 1, 2, ..., of
    ``hashlib.shake_256(f"{seed}:{i}".encode()).digest(4096)``.

    :param seed: any integer.
    """

    #: Bytes that one hash gives.
    BLOCK = 4096

    def __init__(self, seed: int) -> None:
        from hashlib import shake_256  # loads OpenSSL, which the other sources do without

        self._shake = shake_256
        self._seed = seed
        self._next = 0
        self._rest = b""

    def __call__(self, n: int) -> bytes:
        parts, have = [self._rest], len(self._rest)
        while have < n:
            parts.append(self._shake(f"{self._seed}:{self._next}".encode()).digest(self.BLOCK))
            self._next += 1
            have += self.BLOCK
        data = b"".join(parts)
        self._rest = data[n:]
        return data[:n]
