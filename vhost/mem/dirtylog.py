# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The log of dirty pages: shared memory with a bit for each page of guest memory that a device wrote."""

import mmap
import os
from typing import Any, Final, final

from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError

__all__ = ("DirtyLog",)

#: Bytes of guest memory for which a bit stands.
PAGE: Final = 4096


@final
class DirtyLog:
    """The log that a front-end shares (vhost-user, "Migration").

    Pages are marked by the C core, atomically, since the front-end takes the bits out meanwhile.

    :param fd: the shared memory; it stays the caller's.
    :param size: bytes of the log.
    :param offset: where in `fd` it begins.
    :raises GuestMemoryError: `fd` has not as many bytes.
    :raises OSError: it cannot be mapped.
    """

    def __init__(self, fd: int, size: int, offset: int) -> None:
        end = os.fstat(fd).st_size
        if not 0 < size <= end - offset or offset < 0:
            raise GuestMemoryError(
                f"a dirty log of {size:#x} bytes at {offset:#x} of a file with {end:#x} bytes"
            )
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        self._map = mmap.mmap(fd, size + offset - start, offset=start)
        self._view = memoryview(self._map)[offset - start :]
        #: ``struct vh_log *``; its `fd` is an eventfd that is signalled after pages were marked, -1 for none.
        self.cdata: Any = ffi.new("struct vh_log *", {"size": size, "fd": -1})
        self._bits = ffi.from_buffer(self._view)
        self.cdata.bits = self._bits
        # A truncated file is the front-end's fault, and no reason to end.
        self._guard = lib.vh_guard_add(self._bits, size)
        if self._guard < 0:
            self.close()
            raise OSError(-self._guard, f"cannot guard a dirty log: {os.strerror(-self._guard)}")

    def close(self) -> None:
        """Unmap the log; no queue may use it any more."""
        if self._guard > 0:
            lib.vh_guard_remove(self._guard)
        self.cdata = ffi.NULL
        ffi.release(self._bits)
        self._view.release()
        self._map.close()
