# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The native data path of one queue of a block device: csrc/api/blk.h, as Python holds it."""

import mmap
import os
from collections.abc import Callable
from typing import Any

from vhost._core import ffi, lib

__all__ = ("BlkPath", "UringPath")

# Requests of one batch: so many have to fit whatever the size of the ring.
_LEAST = 64
# Bytes of what one call moves of data that are not aligned.
_BOUNCE = 1 << 18


class BlkPath:
    """A data path that never has requests in flight.

    :param init: fills the structure, for a disk.
    :param core: the ``struct vh_blk`` of the disk.
    """

    def __init__(self, init: Callable[[Any, Any], None], core: Any) -> None:
        self._path = ffi.new("struct vh_blk_path *")
        init(self._path, core)
        self._keep: tuple[Any, ...] = (core, self._bounce(core))

    def _bounce(self, core: Any) -> Any:
        if core.align == 1:
            return None
        memory = mmap.mmap(-1, _BOUNCE)  # aligned to pages, as everything is content with
        self._path.bounce, self._path.bounce_size = ffi.from_buffer("uint8_t[]", memory), _BOUNCE
        return memory

    @property
    def cdata(self) -> Any:
        """The ``struct vh_path`` of it."""
        return ffi.addressof(self._path.path)

    @property
    def transfers(self) -> int:
        """Reads and writes of an image."""
        return int(self._path.transfers)

    @property
    def calls(self) -> int:
        """System calls, or operations of io_uring, for them and for flushes."""
        return int(self._path.calls)

    def close(self) -> None:
        """Release what it holds; nothing may be in flight."""


class UringPath(BlkPath):
    """A data path through a ring of io_uring.

    :param entries: requests that can be in flight.
    :raises OSError: the kernel has no such ring for us.
    """

    def __init__(self, core: Any, entries: int) -> None:
        entries = max(entries, _LEAST)
        slots = ffi.new("struct vh_blk_slot[]", entries)
        self._ring = ffi.new("struct vh_blk_uring *")
        self._path = ffi.addressof(self._ring.blk)
        if error := lib.vh_blk_uring_open(self._ring, core, slots, entries):
            raise OSError(-error, os.strerror(-error))
        self._keep = core, slots, self._bounce(core)

    def close(self) -> None:
        lib.vh_blk_uring_close(self._ring)
