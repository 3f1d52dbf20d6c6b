# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Drives an entropy device (virtio 1.3, 5.4)."""

import errno

from .frontend import Frontend

__all__ = ("Rng",)

# Largest request; entropy is asked for in pieces, and devices answer with less than asked for as they like.
_PIECE = 64 << 10


class Rng:
    """An entropy device behind `frontend`, which stays the caller's to close."""

    def __init__(self, frontend: Frontend, *, queue: int = 0) -> None:
        self._frontend = frontend
        self._queue = queue

    def read(self, n: int) -> bytes:
        """Exactly `n` random bytes, with as many requests as that takes.

        :raises OSError: EIO, the device returned a request without a single byte.
        """
        got = bytearray()
        while len(got) < n:
            piece = self._frontend.request(writable=min(n - len(got), _PIECE), queue=self._queue)
            if not piece:
                raise OSError(
                    errno.EIO, f"the entropy device gave nothing, {len(got)} of {n} bytes were there"
                )
            got += piece
        return bytes(got)
