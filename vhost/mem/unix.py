# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory by mmap of the files a front-end passes: the unix build.

Knows page sizes, huge pages and files that shrink. Nothing of Xen is known here.
"""

import fcntl
import os
import stat
from functools import partial
from typing import Any, ClassVar, Final, final

from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError
from vhost.mem._select import require
from vhost.mem.memory import GuestMemory
from vhost.mem.regions import Region, RegionSpec, host_view

__all__ = ("UnixMemory",)

require("unix")

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# Where the kernel can map a transparent huge page: address and file offset equal modulo this.
HUGE: Final = 2 << 20
# Largest huge page of any architecture; what claims to be bigger is not one.
HUGEST: Final = 16 << 30


@final
class UnixMemory(GuestMemory):
    """Guest memory that other processes share by file descriptor (memfd, tmpfs, hugetlbfs, files)."""

    uses_xen: ClassVar[bool] = False

    def _map(self, spec: RegionSpec, fd: int | None) -> Region:
        if spec.xen_flags or spec.domid:
            raise GuestMemoryError(
                f"{spec}: xen flags {spec.xen_flags:#x}, domain {spec.domid}, but this is the unix build; "
                f"install vhost[xen] for memory of Xen guests"
            )
        if fd is None:
            raise GuestMemoryError(f"{spec}: a region must come with the file descriptor to map")
        granule = _granule(spec, fd)
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        # The whole granules that hold the region.
        start = spec.offset // granule * granule
        skip = spec.offset - start
        length = -(-(skip + spec.size) // granule) * granule
        if start + length > 1 << 63:
            raise GuestMemoryError(f"{spec}: the offset is beyond the end of any file")
        base = _reserve(length, start, max(granule, HUGE if spec.size >= HUGE else PAGE))
        try:
            _place(base, length, fd, start, writable)
            slot = lib.vh_guard_add(ffi.cast("void *", base), length)
            if slot < 0:
                raise OSError(-slot, f"cannot guard {spec} against truncation: {os.strerror(-slot)}")
        except BaseException:
            lib.munmap(ffi.cast("void *", base), length)
            raise
        address = base + skip
        view = host_view(address, spec.size, partial(_unmap, base, length, slot))
        return Region(spec, view, address, writable, slot)


def _granule(spec: RegionSpec, fd: int) -> int:
    # The unit in which the file can be mapped. Files on hugetlbfs report their huge page as block size, and
    # only they insist; rounding to the block size of any other file only maps a little more.
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return PAGE
    if spec.offset + spec.size > status.st_size:
        raise GuestMemoryError(
            f"{spec}: the region ends at byte {spec.offset + spec.size:#x} of its file, "
            f"which has only {status.st_size:#x} bytes"
        )
    block = status.st_blksize
    return block if PAGE < block <= HUGEST and block & (block - 1) == 0 else PAGE


def _reserve(length: int, offset: int, align: int) -> int:
    # Address space for a mapping whose address equals its file offset modulo align.
    slack = align - PAGE
    flags = lib.MAP_PRIVATE | lib.MAP_ANONYMOUS | lib.MAP_NORESERVE
    start = _mmap(0, length + slack, lib.PROT_NONE, flags, -1, 0)
    base = start + (offset - start) % align
    if base > start:
        lib.munmap(ffi.cast("void *", start), base - start)
    if base - start < slack:
        lib.munmap(ffi.cast("void *", base + length), slack - (base - start))
    return base


def _place(base: int, length: int, fd: int, offset: int, writable: bool) -> None:
    protection = lib.PROT_READ | (lib.PROT_WRITE if writable else 0)
    _mmap(base, length, protection, lib.MAP_SHARED | lib.MAP_NORESERVE | lib.MAP_FIXED, fd, offset)
    # Only spares core dumps the guest's memory: where the kernel cannot, nothing else changes.
    lib.madvise(ffi.cast("void *", base), length, lib.MADV_DONTDUMP)


def _mmap(address: int, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
    found = lib.mmap(ffi.cast("void *", address), length, protection, flags, fd, offset)
    if found == ffi.cast("void *", -1):
        code = ffi.errno
        raise OSError(code, f"cannot map {length:#x} bytes of guest memory: {os.strerror(code)}")
    return int(ffi.cast("uintptr_t", found))


def _unmap(base: int, length: int, slot: int, _: Any) -> None:
    lib.vh_guard_remove(slot)
    lib.munmap(ffi.cast("void *", base), length)
