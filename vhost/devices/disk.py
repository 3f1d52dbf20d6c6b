# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What is behind a block device: its sizes, its rare operations, and how the C core serves the others.

Offsets and lengths are bytes; nothing here knows requests, queues or the configuration space.
"""

from typing import Any

from vhost._core import ffi, lib
from vhost.devices.blk_path import BlkPath
from vhost.errors import DeviceError
from vhost.virtio.blk import SECTOR

__all__ = ("Disk", "NullDisk")


class Disk:
    """The base of disks: one of `size` bytes that has nothing to flush or to close.

    :raises DeviceError: `size` is no multiple of 512, or 0.
    """

    #: Whether writes are refused.
    read_only: bool
    #: Whether its data paths do requests in the order in which they are taken.
    in_order: bool = True
    #: Bytes of the smallest access that the disk does in one go.
    block_size: int = SECTOR
    #: Bytes: what buffers for it have to be aligned to.
    memory_align: int = 1
    #: Bytes of the smallest write that needs no read before.
    physical_size: int = 4096
    #: Bytes: preferred request size at least, and at best (0: none).
    io_min: int = 4096
    io_best: int = 0
    #: Whether :meth:`discard` gives space back.
    can_discard: bool = False
    #: Bytes: what :meth:`zero` had better be called for at most, so that nobody waits for long.
    zero_most: int = 64 << 20
    #: Where the C core finds the bytes: an open file, or memory.
    fd: int = -1
    memory: Any = ffi.NULL
    #: Slot of the guard over `memory`, where that is a file.
    guard: int = 0

    def __init__(self, size: int, *, read_only: bool = False) -> None:
        if size <= 0 or size % SECTOR:
            raise DeviceError(f"a disk of {size} bytes: at least one sector of {SECTOR}, and whole ones")
        #: Bytes.
        self.size = size
        self.read_only = read_only
        if read_only:
            self.can_discard = False

    def path(self, core: Any, entries: int, *, later: bool) -> BlkPath:
        """A data path for a queue of up to `entries` requests.

        :param core: the ``struct vh_blk`` of this disk.
        :param later: whether it may complete requests after it was called for them.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Return when all that was written before is on stable storage."""

    def discard(self, offset: int, length: int) -> None:
        """The contents of the range are no longer needed; they may read as anything until written."""

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeroes.

        :param unmap: give the space back where that is possible; otherwise the space stays reserved.
        """

    def close(self) -> None:
        """Release what the disk holds; a second call does nothing."""


class NullDisk(Disk):
    """A disk that keeps nothing: reads leave the driver's buffers as they are. For tests and benchmarks."""

    can_discard = True

    def path(self, core: Any, entries: int, *, later: bool) -> BlkPath:
        return BlkPath(lib.vh_blk_null_init, core)
