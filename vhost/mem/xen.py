# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory of Xen domains, by foreign mapping and by grants: the Xen build.

Knows the flags a front-end gives each region (vhost-user, "Memory region description") and how a grant
reference is an address (Linux, drivers/xen/grant-dma-ops.c). All arithmetic is in Xen's pages of 4096 bytes.
"""

import enum
from typing import Any, ClassVar, Final, final

from vhost.errors import GuestMemoryError
from vhost.mem._select import require
from vhost.mem.memory import GuestMemory
from vhost.mem.regions import Region, RegionSpec
from vhost.mem.scopes import Deferred, RingAccess

require("xen")

try:
    from pyxenctrl import PAGE_SIZE, gnttab
    from vhost.mem.foreign import MAX_FRAMES, map_foreign
    from vhost.mem.grants import COPY_ALL, GRANT_BIT, Grants
except ModuleNotFoundError as error:
    raise ImportError(
        f"this installation of vhost is the Xen build, which needs pyxenctrl ({error}): pip install pyxenctrl"
    ) from error

__all__ = ("XenFlag", "XenMemory")

try:
    gnttab.library()
except OSError as error:
    raise ImportError(
        f"this installation of vhost is the Xen build, but a Xen library is missing: {error.strerror}; "
        f"install it, or pip uninstall vhost-xen"
    ) from error


class XenFlag(enum.IntFlag):
    """The "xen mmap flags" of a region."""

    FOREIGN = 0x1
    GRANT = 0x2
    NO_ADVANCE_MAP = 0x100
    #: What the crate vm-memory, and so every front-end built on it, sends for NO_ADVANCE_MAP.
    NO_ADVANCE_MAP_VM_MEMORY = 0x8


#: Domain numbers from here on are not domains (DOMID_FIRST_RESERVED).
DOMID_END: Final = 0x7FF0

_NO_ADVANCE: Final = XenFlag.NO_ADVANCE_MAP | XenFlag.NO_ADVANCE_MAP_VM_MEMORY


@final
class XenMemory(GuestMemory):
    """Guest memory of Xen domains.

    A FOREIGN region is mapped whole when it is added, a GRANT region too. What lies in a region that says
    NO_ADVANCE_MAP is mapped or copied for its use, see :mod:`vhost.mem.grants`.

    :param grant_cache: pages of such regions that stay mapped for later requests, see docs/xen.md.
    :param copy_each: bytes of a piece up to which it is copied; None: a default; `copy_all`: see
        :mod:`vhost.mem.grants`.
    """

    uses_xen: ClassVar[bool] = True

    def __init__(
        self, *, grant_cache: int = 0, copy_each: int | None = None, copy_all: int = COPY_ALL
    ) -> None:
        super().__init__()
        self._grants = Grants(copy_each=copy_each, copy_all=copy_all, cache=grant_cache)

    def _map(self, spec: RegionSpec, fd: int | None) -> Region:
        flags = _checked_flags(spec)
        if flags == XenFlag.FOREIGN:
            return map_foreign(spec, fd)
        if flags & _NO_ADVANCE:
            return Region(spec, None, 0, writable=True, source=self._grants.table)
        try:
            view, address = self._grants.map_part(spec, 0, spec.size, True)
        except GuestMemoryError:
            # Pages that the device only reads may be granted read-only. If that fails too, it says why.
            view, address = self._grants.map_part(spec, 0, spec.size, False)
            return Region(spec, view, address, writable=False)
        return Region(spec, view, address, writable=True)

    def map_deferred(self, pieces: Any, n: int) -> Deferred:
        return self._grants.reach(pieces, n)

    def _map_part(self, region: Region, offset: int, n: int, write: bool) -> tuple[memoryview, int]:
        return self._grants.map_part(region.spec, offset, n, write)

    def _ring(self, region: Region, offset: int, n: int, clear: int | None) -> RingAccess:
        spec, closed = region.spec, self._grants.forget
        if clear is None or not spec.xen_flags & XenFlag.GRANT:
            return RingAccess(*self._use(region, offset, n, write=True), closed)
        start = (spec.guest_addr + offset) % PAGE_SIZE
        if region.view is None and start + n <= PAGE_SIZE:
            return RingAccess(*self._grants.map_watched(spec, offset, n, clear), closed)
        # Only a single page can be watched: it is mapped once more for that.
        view, address = self._use(region, offset, n, write=True)
        watch, _ = self._grants.map_watched(spec, offset + clear, 1, 0)

        def close() -> None:
            watch.release()
            closed()

        return RingAccess(view, address, close)


def _checked_flags(spec: RegionSpec) -> XenFlag:
    # What kind of region it is, once everything about it has been checked that needs no Xen.
    flags = XenFlag(spec.xen_flags & 0x10B)
    kind = flags & (XenFlag.FOREIGN | XenFlag.GRANT)
    where = f"{spec}, domain {spec.domid}, xen flags {spec.xen_flags:#x}"
    if spec.xen_flags != flags:
        raise GuestMemoryError(f"{where}: unknown flags {spec.xen_flags & ~0x10B:#x}")
    if not kind:
        raise GuestMemoryError(
            f"{where}: neither FOREIGN nor GRANT, but this is the Xen build of vhost and maps nothing else; "
            f"pip uninstall vhost-xen for guests whose memory comes as files"
        )
    if kind == XenFlag.FOREIGN | XenFlag.GRANT or (kind == XenFlag.FOREIGN and flags & _NO_ADVANCE):
        raise GuestMemoryError(f"{where}: FOREIGN goes with neither GRANT nor NO_ADVANCE_MAP")
    if not 0 <= spec.domid < DOMID_END:
        raise GuestMemoryError(f"{where}: no such domain, numbers end at {DOMID_END - 1:#x}")
    if kind == XenFlag.FOREIGN:
        if spec.guest_addr % PAGE_SIZE or spec.size % PAGE_SIZE:
            raise GuestMemoryError(f"{where}: a foreign region must be whole pages of {PAGE_SIZE} bytes")
        if spec.size > MAX_FRAMES * PAGE_SIZE:
            raise GuestMemoryError(f"{where}: a foreign region can have {MAX_FRAMES * PAGE_SIZE:#x} bytes")
    elif not spec.guest_addr & GRANT_BIT:
        raise GuestMemoryError(f"{where}: addresses of grants have bit 63 set")
    return flags
