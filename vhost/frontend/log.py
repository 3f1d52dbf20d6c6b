# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The dirty log: which pages of guest memory a backend has written (vhost-user.rst, «Migration»)."""

import mmap
import os
from typing import Final

from vhost._core import ffi, lib
from vhost.protocol import SetLogBase

__all__ = ("DirtyLog", "LOG_PAGE")

#: Bytes that one bit of the log stands for, whatever the host's pages are.
LOG_PAGE: Final = 4096

_WORD: Final = 8


class DirtyLog:
    """A bit for each page of guest memory, from guest address 0 on, in memory shared with the backend.

    :param end: guest address behind the last byte of guest memory.
    """

    def __init__(self, end: int) -> None:
        pages = -(-end // LOG_PAGE)
        self.size = -(-pages // (8 * mmap.PAGESIZE)) * mmap.PAGESIZE
        self._fd = os.memfd_create("vhost-dirty-log", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._fd, self.size)
            self._map = mmap.mmap(self._fd, self.size)
        except BaseException:
            os.close(self._fd)
            raise
        self._taken = ffi.new("uint64_t[]", self.size // _WORD)

    def fileno(self) -> int:
        """The memfd, for the message that shares it."""
        return self._fd

    def message(self) -> SetLogBase:
        """What tells the backend of the log."""
        return SetLogBase(self.size, 0)

    def take(self) -> list[int]:
        """Guest addresses of the pages written since the last call, sorted; their marks are gone then."""
        with memoryview(self._map) as view:
            if not lib.vh_dirty_take(ffi.from_buffer(view), self.size // _WORD, self._taken):
                return []
        pages = []
        for at, word in enumerate(self._taken):
            while word:
                low = word & -word
                pages.append((at * 64 + low.bit_length() - 1) * LOG_PAGE)
                word ^= low
        return pages

    def close(self) -> None:
        """Unmap and close."""
        self._map.close()
        os.close(self._fd)
