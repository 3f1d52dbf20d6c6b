# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The raw image or block device behind a virtual disk: sizes, flush, discard, write zeroes.

Offsets and lengths are bytes; nothing here knows requests, queues or the configuration space.
"""

import errno
import fcntl
import logging
import os
import stat
import struct

from vhost.devices.fallocate import PUNCH_HOLE, ZERO_RANGE, fallocate
from vhost.errors import DeviceError
from vhost.virtio.blk import SECTOR

__all__ = ("Disk",)

# ioctls of block devices (linux/fs.h)
_BLKDISCARD = 0x1277
_BLKIOMIN = 0x1278
_BLKIOOPT = 0x1279
_BLKSSZGET = 0x1268
_BLKPBSZGET = 0x127B

# What fallocate says when this file system, or this alignment on a block device, is not for it.
_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV}

_log = logging.getLogger(__name__)


class Disk:
    """An open raw image or block device.

    :param path: a regular file or a block device.
    :param read_only: open it for reading only.
    :raises OSError: it cannot be opened.
    :raises DeviceError: it is neither, or holds not even one sector.
    """

    #: The open file; any number of threads may read and write at explicit offsets.
    fd: int
    #: Bytes, a multiple of 512.
    size: int
    read_only: bool
    #: Bytes of the smallest access that the disk does in one go.
    block_size: int
    #: Bytes of the smallest write that needs no read before.
    physical_size: int
    #: Bytes: preferred request size at least, and at best (0: none).
    io_min: int
    io_best: int
    #: Whether :meth:`discard` gives space back.
    can_discard: bool

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.read_only = read_only
        mode = os.stat(path).st_mode  # first, because opening a pipe would wait for its other end
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DeviceError(f"{os.fspath(path)}: neither a regular file nor a block device")
        self.fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            self._measure(os.fspath(path))
        except BaseException:
            self.close()
            raise

    def _measure(self, path: str) -> None:
        about = os.fstat(self.fd)
        end = os.lseek(self.fd, 0, os.SEEK_END)  # st_size is 0 for block devices
        self.size = end - end % SECTOR
        if not self.size:
            raise DeviceError(f"{path}: {end} bytes are no disk; make room first: truncate --size=1G {path}")
        if self.size != end:
            _log.warning("%s: the last %d bytes are less than a sector and stay out", path, end - self.size)
        self._is_device = stat.S_ISBLK(about.st_mode)
        if self._is_device:
            self.block_size = self._ask(_BLKSSZGET)
            self.physical_size = max(self._ask(_BLKPBSZGET), self.block_size)
            self.io_min = max(self._ask(_BLKIOMIN), self.block_size)
            self.io_best = self._ask(_BLKIOOPT)
        else:
            self.block_size = SECTOR
            # Blocks of the file system; some report sizes that are no power of two, or megabytes.
            block = about.st_blksize
            self.physical_size = block if SECTOR <= block <= 65536 and not block & (block - 1) else 4096
            self.io_min, self.io_best = self.physical_size, 0
        self.can_discard = not self.read_only and self._probe_discard()

    def _ask(self, request: int) -> int:
        value: int = struct.unpack("I", fcntl.ioctl(self.fd, request, bytes(4)))[0]
        return value

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

    def flush(self) -> None:
        """Return when all that was written before is on stable storage."""
        os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        """The contents of the range are no longer needed; they may read as anything until written."""
        if not self._is_device:
            fallocate(self.fd, PUNCH_HOLE, offset, length)
            return
        start = -(-offset // self.block_size) * self.block_size
        stop = (offset + length) // self.block_size * self.block_size
        if start < stop:
            fcntl.ioctl(self.fd, _BLKDISCARD, struct.pack("QQ", start, stop - start))

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeroes.

        :param unmap: give the space back where that is possible; otherwise the space stays reserved.
        """
        for mode in (PUNCH_HOLE, ZERO_RANGE) if unmap else (ZERO_RANGE,):
            try:
                fallocate(self.fd, mode, offset, length)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
            else:
                return
        zeroes = memoryview(bytes(min(length, 1 << 20)))
        while length:
            done = os.pwrite(self.fd, zeroes[:length], offset)
            offset, length = offset + done, length - done

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
