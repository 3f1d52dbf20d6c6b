# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory of a frontend: one sealed memfd, mapped once, and an allocator for rings and buffers in it.

It may be shown to the backend as several regions, with holes between them.
"""

import bisect
import fcntl
import mmap
import os
from typing import Final

__all__ = ("GuestRam", "Buffer", "GUEST_BASE", "USER_BASE")

#: Guest-physical address of the first byte.
GUEST_BASE: Final = 0x4000_0000
#: What the first byte's "user address" is said to be. A backend only compares these numbers, so any will do;
#: this one differs from the guest address in a way that uncovers a backend that mixes the two up.
USER_BASE: Final = 0x7E00_0000_0000

# Guest-physical bytes between two regions, where there is nothing.
_HOLE: Final = 0x1_0000
# Buffers start on a cache line unless asked otherwise, so that no two share one.
_LINE = 64


class Buffer:
    """A piece of guest memory: `gpa`, `size`, and `view` to read and write it."""

    __slots__ = ("gpa", "size", "view")

    def __init__(self, gpa: int, size: int, view: memoryview) -> None:
        self.gpa = gpa
        self.size = size
        self.view = view

    def __repr__(self) -> str:
        return f"<Buffer gpa={self.gpa:#x} size={self.size}>"


class GuestRam:
    """Memory that is shared with a backend.

    :param size: bytes, rounded up to whole pages for each region.
    :param regions: how many regions it has, all of one size. A buffer lies in one of them.
    :raises OSError: the system has no such memory.
    """

    def __init__(self, size: int, regions: int = 1) -> None:
        if size <= 0 or regions <= 0:
            raise ValueError(
                f"guest memory of {size} bytes in {regions} regions: a page ({mmap.PAGESIZE}) is the least"
            )
        pages = -(-size // (regions * mmap.PAGESIZE))
        #: Bytes of each region.
        self.region_size = pages * mmap.PAGESIZE
        self.size = self.region_size * regions
        self._stride = self.region_size + (_HOLE if regions > 1 else 0)
        self._fd = os.memfd_create("vhost-guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, self.size)
            # A backend need not fear that its mapping loses its pages.
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._map = mmap.mmap(self._fd, self.size)
        except BaseException:
            os.close(self._fd)
            raise
        self._view = memoryview(self._map)
        # Free pieces in order of their guest address, from the first byte on; none empty, no two adjacent.
        self._free = [(i * self._stride, self.region_size) for i in range(regions)]
        self._used: dict[int, Buffer] = {}

    def fileno(self) -> int:
        """The memfd, for a message that shares it."""
        return self._fd

    def user_address(self, gpa: int) -> int:
        """What a message calls the address `gpa` where it wants a front-end virtual address."""
        return gpa - GUEST_BASE + USER_BASE

    @property
    def end(self) -> int:
        """Guest-physical address behind the last byte."""
        return GUEST_BASE + (self.size // self.region_size - 1) * self._stride + self.region_size

    def regions(self) -> list[tuple[int, int]]:
        """Guest-physical address of each region, and where it begins in the memfd."""
        count = self.size // self.region_size
        return [(GUEST_BASE + i * self._stride, i * self.region_size) for i in range(count)]

    def alloc(self, size: int, align: int = _LINE, *, region: int | None = None) -> Buffer:
        """Take a piece of `size` bytes; its contents are what was left there.

        :param align: of the guest-physical address, a power of two.
        :param region: number of the region to take it from, None: the first that has room.
        :raises MemoryError: no free piece is large enough.
        """
        if size <= 0 or align <= 0 or align & (align - 1):
            raise ValueError(
                f"cannot allocate {size} bytes aligned to {align}: size > 0 and a power of two wanted"
            )
        room = -(-size // _LINE) * _LINE
        for i, (start, length) in enumerate(self._free):
            at = -(-start // align) * align
            here = start // self._stride
            if at + room <= start + length and (region is None or here == region):
                pieces = ((start, at - start), (at + room, start + length - at - room))
                self._free[i : i + 1] = [piece for piece in pieces if piece[1]]
                offset = at - here * (self._stride - self.region_size)
                buffer = Buffer(GUEST_BASE + at, size, self._view[offset : offset + size])
                self._used[at] = buffer
                return buffer
        largest = max((length for _, length in self._free), default=0)
        raise MemoryError(
            f"no {size} bytes of guest memory in one piece: {largest} are free; wait for requests in "
            f"flight or connect with more than ram_size={self.size}"
        )

    def free(self, buffer: Buffer) -> None:
        """Give a piece back; its `view` is gone, unless somebody has an export of it.

        :raises ValueError: it is not one of ours, or was given back already.
        """
        start = buffer.gpa - GUEST_BASE
        if self._used.get(start) is not buffer:
            raise ValueError(f"{buffer!r} is not allocated here")
        del self._used[start]
        _release(buffer.view)
        end = start + -(-buffer.size // _LINE) * _LINE
        i = bisect.bisect(self._free, (start, 0))
        first, last = i, i
        if i < len(self._free) and self._free[i][0] == end:
            end += self._free[i][1]
            last = i + 1
        if i and sum(self._free[i - 1]) == start:
            start = self._free[i - 1][0]
            first = i - 1
        self._free[first:last] = [(start, end - start)]

    @property
    def available(self) -> int:
        """Bytes that are not allocated."""
        return sum(length for _, length in self._free)

    def close(self) -> None:
        """Unmap and close. What somebody made of a buffer's view keeps the pages until it is gone."""
        if self._fd < 0:
            return
        for buffer in self._used.values():
            _release(buffer.view)
        self._used.clear()
        self._free.clear()
        self._view.release()
        try:
            self._map.close()
        except BufferError:
            pass
        os.close(self._fd)
        self._fd = -1


def _release(view: memoryview) -> None:
    try:
        view.release()
    except BufferError:
        pass
