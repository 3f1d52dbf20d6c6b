# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A disk in the memory of this process: fast, and gone with it."""

import mmap
from typing import Any

from vhost._core import ffi, lib
from vhost.devices.blk_path import BlkPath
from vhost.devices.disk import Disk

__all__ = ("MemoryDisk",)


class MemoryDisk(Disk):
    """A disk whose bytes are zero at first; memory is taken as it is written to.

    :param size: bytes, a multiple of 512.
    :raises DeviceError: `size` is no multiple of 512, or 0.
    :raises OSError: there is no address space for it.
    """

    can_discard = True
    zero_most = 4 << 20  # memory that nobody has touched takes a hundred times as long

    def __init__(self, size: int, *, read_only: bool = False) -> None:
        super().__init__(size, read_only=read_only)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | lib.MAP_NORESERVE
        self._bytes = mmap.mmap(-1, size, flags=flags)
        # Random requests on small pages would miss the TLB every time.
        self._bytes.madvise(mmap.MADV_HUGEPAGE)
        self.memory = ffi.from_buffer("uint8_t[]", self._bytes)

    def path(self, core: Any, entries: int, *, later: bool) -> BlkPath:
        return BlkPath(lib.vh_blk_memory_init, core)

    def discard(self, offset: int, length: int) -> None:
        self.zero(offset, length, unmap=True)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        end = offset + length
        first, last = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if unmap and first < last:
            self._bytes.madvise(mmap.MADV_DONTNEED, first, last - first)
            lib.memset(self.memory + offset, 0, first - offset)
            offset = last
        lib.memset(self.memory + offset, 0, end - offset)

    def close(self) -> None:
        if self.memory:
            ffi.release(self.memory)
            self.memory = ffi.NULL
            self._bytes.close()
