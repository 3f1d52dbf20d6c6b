# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory by mmap of the files a front-end passes: the unix build.

Knows page sizes, huge pages and files that shrink. Nothing of Xen is known here.
"""

import os
from typing import Any, ClassVar, final

from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError
from vhost.mem._select import require
from vhost.mem.memory import GuestMemory
from vhost.mem.regions import Region, RegionSpec

__all__ = ("UnixMemory",)

require("unix")


@final
class UnixMemory(GuestMemory):
    """Guest memory that other processes share by file descriptor (memfd, tmpfs, hugetlbfs, files)."""

    uses_xen: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self._error = ffi.new("struct vh_map_error *")

    def _map(self, spec: RegionSpec, fd: int | None) -> Region:
        if spec.xen_flags or spec.domid:
            raise GuestMemoryError(
                f"{spec}: xen flags {spec.xen_flags:#x}, domain {spec.domid}, but this is the unix build; "
                f"install vhost[xen] for memory of Xen guests"
            )
        if fd is None:
            raise GuestMemoryError(f"{spec}: a region must come with the file descriptor to map")
        error = self._error
        made = lib.vh_map(fd, spec.offset, spec.size, error)
        if not made:
            raise _failure(spec, error)
        mapping = ffi.gc(made, lib.vh_unmap)
        return Region(spec, None, made.host, bool(made.writable), made.guard, mapping=mapping)


def _failure(spec: RegionSpec, error: Any) -> Exception:
    code, step = error.code, error.step
    if step == lib.VH_MAP_SHORT:
        return GuestMemoryError(
            f"{spec}: the region ends at byte {spec.offset + spec.size:#x} of its file, "
            f"which has only {error.detail:#x} bytes"
        )
    if step == lib.VH_MAP_BEYOND:
        return GuestMemoryError(f"{spec}: the offset is beyond the end of any file")
    if step == lib.VH_MAP_STAT:
        return OSError(code, os.strerror(code))
    if step == lib.VH_MAP_GUARD:
        return OSError(code, f"cannot guard {spec} against truncation: {os.strerror(code)}")
    return OSError(code, f"cannot map {error.detail:#x} bytes of guest memory: {os.strerror(code)}")
