# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A raw image or block device as a disk: how it is opened and measured, flush, discard, write zeroes."""

import errno
import fcntl
import logging
import mmap
import os
import stat
import struct
from typing import Any, Literal

from vhost._core import ffi, lib
from vhost.devices.blk_path import BlkPath, UringPath
from vhost.devices.disk import Disk
from vhost.devices.fallocate import PUNCH_HOLE, ZERO_RANGE, fallocate
from vhost.devices.image_lock import lock_image
from vhost.errors import DeviceError
from vhost.virtio.blk import SECTOR

__all__ = ("Image",)

# ioctls of block devices (linux/fs.h)
_BLKDISCARD = 0x1277
_BLKIOMIN = 0x1278
_BLKIOOPT = 0x1279
_BLKSSZGET = 0x1268
_BLKPBSZGET = 0x127B

# struct statx (linux/stat.h): its mask, and from byte 152 on the alignment of addresses and of offsets.
_STATX = struct.Struct("@I")
_DIOALIGN = struct.Struct("@II")
_STATX_DIOALIGN = 0x2000

# File systems in memory (linux/magic.h): tmpfs, ramfs, hugetlbfs.
_IN_MEMORY = 0x01021994, 0x858458F6, 0x958458F6

# What fallocate says when this file system, or this alignment on a block device, is not for it.
_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV}

# Bytes of zeroes that have to be written, at most, before others have their turn.
_WRITTEN = 4 << 20

_log = logging.getLogger(__name__)


class Image(Disk):
    """An open raw image or block device.

    :param path: a regular file or a block device.
    :param read_only: open it for reading only.
    :param io: how the C core reads and writes it. ``uring``: by io_uring, with many requests at the disk at
        once; ``map``: by a mapping; ``sync``: by system calls, one after the other. ``auto``: a mapping where
        the file system is in memory, else io_uring, else, where the kernel allows none, system calls.
    :param direct: go past the page cache of the host (``O_DIRECT``), where the guest has one of its own.
    :param lock: refuse an image that another program writes, or that is to be written and another one uses.
    :raises OSError: it cannot be opened.
    :raises DeviceError: it is neither, holds not even one sector, or is in use.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        io: Literal["auto", "sync", "uring", "map"] = "auto",
        direct: bool = False,
        lock: bool = True,
    ) -> None:
        if direct and io == "map":
            raise DeviceError("a mapping is of the page cache: io='map' and direct exclude each other")
        mode = os.stat(path).st_mode  # first, because opening a pipe would wait for its other end
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DeviceError(f"{os.fspath(path)}: neither a regular file nor a block device")
        flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR) | (os.O_DIRECT if direct else 0)
        self.fd = os.open(path, flags)
        try:
            self._is_device = stat.S_ISBLK(mode)
            if self._is_device:
                self.block_size = self._ask(_BLKSSZGET)
            if direct:
                self.block_size, self.memory_align = self._alignment()
            if lock:
                lock_image(self.fd, os.fspath(path), read_only=read_only)
            super().__init__(self._size(os.fspath(path)), read_only=read_only)
            self._measure()
            self._name, self._io = os.fspath(path), io
            if io == "map" or (io == "auto" and not direct and self._in_memory()):
                self._map()
            # By io_uring they overtake each other.
            self.in_order = bool(self.guard) or io == "sync"
        except BaseException:
            self.close()
            raise

    def _size(self, path: str) -> int:
        end = os.lseek(self.fd, 0, os.SEEK_END)  # st_size is 0 for block devices
        size = end - end % self.block_size
        if not size:
            raise DeviceError(f"{path}: {end} bytes are no disk; make room first: truncate --size=1G {path}")
        if size != end:
            _log.warning("%s: the last %d bytes are less than a sector and stay out", path, end - size)
        return size

    def _measure(self) -> None:
        about = os.fstat(self.fd)
        if self._is_device:
            self.physical_size = max(self._ask(_BLKPBSZGET), self.block_size)
            self.io_min = max(self._ask(_BLKIOMIN), self.block_size)
            self.io_best = self._ask(_BLKIOOPT)
        else:
            # Blocks of the file system; some report sizes that are no power of two, or megabytes.
            block = about.st_blksize
            block = block if SECTOR <= block <= 65536 and not block & (block - 1) else 4096
            self.physical_size = max(block, self.block_size)
            self.io_min, self.io_best = self.physical_size, 0
        self.can_discard = not self.read_only and self._probe_discard()

    def _ask(self, request: int) -> int:
        value: int = struct.unpack("I", fcntl.ioctl(self.fd, request, bytes(4)))[0]
        return value

    def _alignment(self) -> tuple[int, int]:
        """What offsets and lengths, and what addresses have to be multiples of, without the page cache."""
        about = ffi.new("char[256]")
        known = lib.statx(self.fd, b"", lib.AT_EMPTY_PATH, _STATX_DIOALIGN, ffi.cast("struct statx *", about))
        mask, memory, offset = (
            *_STATX.unpack_from(ffi.buffer(about), 0),
            *_DIOALIGN.unpack_from(ffi.buffer(about), 152),
        )
        if known == 0 and mask & _STATX_DIOALIGN and offset:
            return max(offset, SECTOR), memory
        # Linux before 6.1 does not tell: what suits every disk.
        return max(self.block_size, 4096), 4096

    def _probe_discard(self) -> bool:
        # Both requests are refused or do nothing: one is not aligned, the other is beyond the end.
        try:
            if self._is_device:
                fcntl.ioctl(self.fd, _BLKDISCARD, struct.pack("QQ", 1, SECTOR))
            else:
                fallocate(self.fd, PUNCH_HOLE, self.size + SECTOR, SECTOR)
        except OSError as error:
            return self._is_device and error.errno == errno.EINVAL
        return True

    def path(self, core: Any, entries: int, *, later: bool) -> BlkPath:
        if self.guard:
            return BlkPath(lib.vh_blk_memory_init, core)
        if later and self._io in ("auto", "uring"):
            try:
                return UringPath(core, entries)
            except OSError as error:
                # Seccomp filters, kernel.io_uring_disabled, old kernels: worth a line, and one is enough.
                level = logging.WARNING if self._io == "uring" else logging.INFO
                why = error.strerror
                _log.log(level, "%s: no io_uring here (%s), system calls instead", self._name, why)
                self._io = "sync"
        return BlkPath(lib.vh_blk_file_init, core)

    def _in_memory(self) -> bool:
        about = ffi.new("struct statfs *")
        return lib.fstatfs(self.fd, about) == 0 and about.f_type in _IN_MEMORY

    def _map(self) -> None:
        access = mmap.PROT_READ | (0 if self.read_only else mmap.PROT_WRITE)
        self._mapping = mmap.mmap(self.fd, self.size, flags=mmap.MAP_SHARED, prot=access)
        self.memory = ffi.from_buffer("uint8_t[]", self._mapping)
        slot = lib.vh_guard_add(self.memory, self.size)
        if slot < 0:
            raise DeviceError(f"{self._name}: cannot guard its mapping: {os.strerror(-slot)}")
        self.guard = slot

    def flush(self) -> None:
        os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        if not self._is_device:
            fallocate(self.fd, PUNCH_HOLE, offset, length)
            return
        start = -(-offset // self.block_size) * self.block_size
        stop = (offset + length) // self.block_size * self.block_size
        if start < stop:
            fcntl.ioctl(self.fd, _BLKDISCARD, struct.pack("QQ", start, stop - start))

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        for mode in (PUNCH_HOLE, ZERO_RANGE) if unmap else (ZERO_RANGE,):
            try:
                fallocate(self.fd, mode, offset, length)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
            else:
                if os.lseek(self.fd, 0, os.SEEK_END) >= offset + length:
                    return
                break  # the image has become shorter; as with a write, it becomes as long as need be
        self.zero_most = _WRITTEN  # how fast that is depends on what else is to be written to the disk
        zeroes = memoryview(mmap.mmap(-1, min(length, 1 << 20)))  # aligned to a page
        while length:
            done = os.pwrite(self.fd, zeroes[:length], offset)
            offset, length = offset + done, length - done

    def close(self) -> None:
        if self.guard:
            lib.vh_guard_remove(self.guard)
            self.guard = 0
        if self.memory:
            ffi.release(self.memory)
            self.memory = ffi.NULL
            self._mapping.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
