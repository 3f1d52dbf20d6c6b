# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory that maps a grant for each access, as the crate vm-memory does: what ours is compared with.

Each piece of a request (header, data, status) has a MAP_GRANT_REF, an mmap, a munmap and an UNMAP_GRANT_REF
of its own. They are the system calls themselves, without libxengnttab and what it does besides.
"""

import fcntl
import os
import struct
from collections.abc import Callable
from typing import Any

from pyxenctrl import PAGE_SIZE
from vhost._core import ffi, lib
from vhost.mem.xen import XenMemory

__all__ = ("PerAccess",)

GNTDEV = "/dev/xen/gntdev"
MAP_GRANT_REF, UNMAP_GRANT_REF = 0x184700, 0x104701
# The first: count u32, padding, index u64 (the answer), then domain u32 and reference u32 for each page.
# The second: index u64, count u32, padding.
INDEX = 8
REFERENCES = (1 << 63) - PAGE_SIZE
FAILED = ffi.cast("void *", -1)


class Pieces:
    """Those of a batch, each mapped by itself; it stands in for :class:`vhost.mem.Deferred`."""

    views = ()

    def __init__(self, device: int) -> None:
        self._device = device
        self._parts: list[tuple[Any, int, int]] = []  # address, pages, the kernel's index

    def map(self, piece: Any) -> int:
        """Makes one reachable; returns how many pages it has."""
        gpa, domid = piece.gpa, piece.domid
        offset, ref = gpa % PAGE_SIZE, (gpa & REFERENCES) // PAGE_SIZE
        pages: int = (offset + piece.len + PAGE_SIZE - 1) // PAGE_SIZE
        if pages == 1:
            request = bytearray(struct.pack("<QQII", 1, 0, domid, ref))
        else:
            grants = [number for page in range(pages) for number in (domid, ref + page)]
            request = bytearray(struct.pack(f"<QQ{2 * pages}I", pages, 0, *grants))
        fcntl.ioctl(self._device, MAP_GRANT_REF, request)
        (index,) = struct.unpack_from("<Q", request, INDEX)
        protection = lib.PROT_READ | lib.PROT_WRITE if piece.write else lib.PROT_READ
        address = lib.mmap(ffi.NULL, pages * PAGE_SIZE, protection, lib.MAP_SHARED, self._device, index)
        if address == FAILED:
            raise OSError(ffi.errno, f"cannot map grant {ref:#x}: {os.strerror(ffi.errno)}")
        self._parts.append((address, pages, index))
        piece.host = address + offset
        return pages

    def store(self, copies: int) -> None:
        """Nothing was copied."""
        assert not copies

    def close(self) -> None:
        """Gives them back, one after the other."""
        device = self._device
        for address, pages, index in self._parts:
            lib.munmap(address, pages * PAGE_SIZE)
            fcntl.ioctl(device, UNMAP_GRANT_REF, struct.pack("<QQ", index, pages))
        self._parts.clear()


class PerAccess(XenMemory):  # type: ignore[misc]
    """Rings are mapped once, as front-ends of vm-memory have them mapped in advance; all else is not.

    :param count: is told of each batch: how many pieces, and how many pages.
    """

    def __init__(self, count: Callable[[int, int], None]) -> None:
        super().__init__()
        self._count = count
        self._device = os.open(GNTDEV, os.O_RDWR | os.O_CLOEXEC)

    def __del__(self) -> None:
        os.close(self._device)

    def map_deferred(self, pieces: Any, n: int) -> Any:
        made = Pieces(self._device)
        self._count(n, sum(made.map(pieces[index]) for index in range(n)))
        return made
