# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory of Xen domains, by foreign mapping and by grants: the Xen build.

Knows the flags a front-end gives each region (vhost-user, "Memory region description") and how a grant
reference is an address (Linux, drivers/xen/grant-dma-ops.c). The descriptors a front-end sends are not
needed: this side opens its own devices, through pyxenctrl. All arithmetic is in Xen's pages of 4096 bytes.
"""

import enum
import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final, TypeVar, final
from weakref import ref

from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError
from vhost.mem._select import require
from vhost.mem.memory import GuestMemory
from vhost.mem.regions import Region, RegionSpec, host_view

require("xen")

try:
    import pyxenctrl
    from pyxenctrl import PAGE_SIZE, ForeignMemory, GrantTable, Protection, foreignmemory, gnttab
except ModuleNotFoundError as error:
    raise ImportError(
        f"this installation of vhost is the Xen build, which needs pyxenctrl ({error}): pip install pyxenctrl"
    ) from error

__all__ = ("XenFlag", "XenMemory")

_log = logging.getLogger(__name__)


def _check_libraries() -> None:
    missing = []
    for library in (gnttab.library, foreignmemory.library):
        try:
            library()
        except OSError as error:
            missing.append(f"{error.strerror}")
    if missing:
        raise ImportError(
            "this installation of vhost is the Xen build, but the Xen libraries are missing: "
            + "; ".join(missing)
            + "; install them, or pip uninstall vhost-xen"
        )


_check_libraries()


class XenFlag(enum.IntFlag):
    """The "xen mmap flags" of a region."""

    FOREIGN = 0x1
    GRANT = 0x2
    NO_ADVANCE_MAP = 0x100
    #: What the crate vm-memory, and so every front-end built on it, sends for NO_ADVANCE_MAP.
    NO_ADVANCE_MAP_VM_MEMORY = 0x8


#: An address with this bit is a grant reference and an offset in its page.
GRANT_BIT: Final = 1 << 63
#: Grant references have 32 bits.
REF_END: Final = 1 << 32
#: Domain numbers from here on are not domains (DOMID_FIRST_RESERVED).
DOMID_END: Final = 0x7FF0
#: Grants in one mapping: the kernel's own default limit for one request (parameter "limit" of xen-gntdev).
MAX_GRANTS: Final = 64 * 1024
#: Frames in one foreign region, 256 GiB: the map call takes 12 bytes of tables for each.
MAX_FRAMES: Final = 1 << 26
#: Tries at mapping what is paged out or busy for the moment; the waits between them double, 255 ms in all.
TRIES: Final = 9
FIRST_WAIT: Final = 0.001

_NO_ADVANCE: Final = XenFlag.NO_ADVANCE_MAP | XenFlag.NO_ADVANCE_MAP_VM_MEMORY
_Made = TypeVar("_Made")


@final
class XenMemory(GuestMemory):
    """Guest memory of Xen domains.

    A FOREIGN region is mapped whole when it is added, a GRANT region too. What lies in a region that says
    NO_ADVANCE_MAP is mapped for its use, read-only unless the device writes, and unmapped after it.
    """

    uses_xen: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        # Regions hold the handles they need, so that these close with the last region.
        self._foreign: ref[ForeignMemory] | None = None
        self._grants: ref[GrantTable] | None = None

    def _map(self, spec: RegionSpec, fd: int | None) -> Region:
        # Called under the lock: regions share one handle of each kind.
        flags = _checked_flags(spec)
        if flags == XenFlag.FOREIGN:
            foreign = (self._foreign and self._foreign()) or ForeignMemory()
            self._foreign = ref(foreign)
            return _map_foreign(foreign, spec)
        grants = (self._grants and self._grants()) or GrantTable()
        self._grants = ref(grants)
        region = Region(spec, None, 0, writable=True, source=grants)
        if flags & _NO_ADVANCE:
            return region
        (address,), (view,) = self._map_parts([(region, 0, spec.size, True)])
        return Region(spec, view, address, writable=True)

    def _map_parts(
        self, parts: Sequence[tuple[Region, int, int, bool]]
    ) -> tuple[list[int], Sequence[memoryview]]:
        # No variable holds the first when the second fails: a traceback must not keep grants mapped.
        mapped = [*_map_grants(parts, write=False), *_map_grants(parts, write=True)]
        addresses = [0] * len(parts)
        views = [memoryview(bytearray())] * len(parts)
        for index, address, view in mapped:
            addresses[index], views[index] = address, view
        return addresses, views


def _map_grants(
    parts: Sequence[tuple[Region, int, int, bool]], write: bool
) -> list[tuple[int, int, memoryview]]:
    # Map all parts of one direction in one call: (index of the part, its host address, its view).
    places: list[tuple[int, int]] = []  # (index of the part, its first page in the mapping)
    domids: list[int] = []
    refs: list[int] = []
    table: GrantTable | None = None
    for index, (region, offset, n, wanted) in enumerate(parts):
        if wanted is not write or not n:
            continue
        found = _refs(region.spec, offset, n)
        if len(refs) + len(found) > MAX_GRANTS:
            raise GuestMemoryError(
                f"more than {MAX_GRANTS} grants would have to be mapped at once, which the kernel refuses"
            )
        assert isinstance(region.source, GrantTable)  # a region without a view has one
        table = region.source
        places.append((index, len(refs)))
        domids.extend([region.spec.domid] * len(found))
        refs.extend(found)
    if table is None:
        return []
    mapping = _map_refs(table, domids, refs, Protection.READ | Protection.WRITE if write else Protection.READ)
    whole = host_view(mapping.address, mapping.size, partial(_unmap, mapping, 0))
    mapped = []
    for index, page in places:
        region, offset, n, _ = parts[index]
        start = page * PAGE_SIZE + (region.spec.guest_addr + offset) % PAGE_SIZE
        mapped.append((index, mapping.address + start, whole[start : start + n]))
    return mapped


def _map_refs(
    table: GrantTable, domids: list[int], refs: list[int], protection: Protection
) -> pyxenctrl.GrantMapping:
    domid = domids[0]
    call: Callable[[], pyxenctrl.GrantMapping]
    if domids.count(domid) == len(domids):
        call = partial(table.map_domain_grant_refs, domid, refs, protection)
    else:
        call = partial(table.map_grant_refs, domids, refs, protection)
    try:
        return _retry(call, errno.EAGAIN)
    except OSError as error:
        raise GuestMemoryError(
            f"the guest's grants cannot be used: {error.strerror}; it did not grant them so, "
            f"or took them back while the device was using them"
        ) from error


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


def _refs(spec: RegionSpec, offset: int, n: int) -> range:
    # The grant references of a non-empty part of a region: consecutive, one for each Xen page it touches.
    first = (spec.guest_addr + offset - GRANT_BIT) // PAGE_SIZE
    end = (spec.guest_addr + offset + n - GRANT_BIT + PAGE_SIZE - 1) // PAGE_SIZE
    if end > REF_END:
        raise GuestMemoryError(
            f"guest memory {spec.guest_addr + offset:#x}+{n:#x}: grant references end at {REF_END - 1:#x}, "
            f"this would need {end - 1:#x}"
        )
    return range(first, end)


def _map_foreign(handle: ForeignMemory, spec: RegionSpec) -> Region:
    first = spec.guest_addr // PAGE_SIZE
    frames = range(first, first + spec.size // PAGE_SIZE)
    both = Protection.READ | Protection.WRITE
    try:
        mapping = _retry(partial(_map_frames, handle, spec, frames, both), errno.ENOENT)
    except OSError as error:
        raise GuestMemoryError(f"{spec}, domain {spec.domid}: {error.strerror}") from error
    # Touching a frame that is not there any more raises SIGBUS, as beyond the end of a truncated file.
    slot = lib.vh_guard_add(ffi.cast("void *", mapping.address), mapping.size)
    if slot < 0:
        mapping.close()
        raise OSError(-slot, f"cannot guard {spec} against frames going away: {os.strerror(-slot)}")
    view = host_view(mapping.address, mapping.size, partial(_unmap, mapping, slot))
    return Region(spec, view, mapping.address, writable=True, guard=slot)


def _map_frames(
    handle: ForeignMemory, spec: RegionSpec, frames: range, protection: Protection
) -> pyxenctrl.ForeignMapping:
    # One call, which must be all or nothing: laying a region out piece by piece over reserved addresses would
    # leave a hole wherever the library fails and cleans up, for another thread to map into.
    mapping = handle.map(spec.domid, frames, protection, partial=True)
    if not mapping.failed:
        return mapping
    failed = mapping.failed
    mapping.close()
    # Waiting helps only if every failed frame is just paged out.
    lasting = [code for _, code in failed if code != errno.ENOENT]
    code = lasting[0] if lasting else errno.ENOENT
    some = ", ".join(f"{frames[index]:#x} ({os.strerror(code)})" for index, code in failed[:8])
    more = f" and {len(failed) - 8} more" if len(failed) > 8 else ""
    raise OSError(code, f"{len(failed)} of {len(frames)} frames cannot be mapped: {some}{more}")


def _retry(call: Callable[[], _Made], code: int) -> _Made:
    # Whatever fails for the moment is tried again, but not for ever.
    wait = FIRST_WAIT
    for _ in range(TRIES - 1):
        try:
            return call()
        except OSError as error:
            if error.errno != code:
                raise
        time.sleep(wait)
        wait *= 2
    return call()


def _unmap(mapping: pyxenctrl.GrantMapping | pyxenctrl.ForeignMapping, slot: int, _: Any) -> None:
    # Runs when the last view is dropped: there is nobody to raise to.
    lib.vh_guard_remove(slot)
    try:
        mapping.close()
    except OSError as error:
        _log.error("guest memory of Xen stays mapped: %s", error.strerror)
