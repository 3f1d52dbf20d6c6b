# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Pages that a Xen guest granted: mapped or copied, for a batch of requests with one call of each kind.

Small pieces are copied by the hypervisor, larger ones are mapped. A mapping has one protection, so of the two
directions the one with less in it is copied as well, which leaves one map call for a batch. What is mapped is
read-only unless the device writes there: guests grant so. The C core (csrc/grants.c) sorts the pieces.
"""

import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final, final
from weakref import ref

from pyxenctrl import PAGE_SIZE, GrantMapping, GrantTable, Protection
from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError
from vhost.mem.bounce import BouncePool
from vhost.mem.grantcache import GrantCache
from vhost.mem.regions import RegionSpec, host_view
from vhost.mem.retry import retry
from vhost.mem.scopes import Deferred

__all__ = ("COPY_EACH", "COPY_EACH_CACHED", "COPY_ALL", "GRANT_BIT", "MAX_GRANTS", "Grants")

_log = logging.getLogger(__name__)

#: An address with this bit is a grant reference and an offset in its page.
GRANT_BIT: Final = 1 << 63
#: Grant references have 32 bits.
REF_END: Final = 1 << 32
#: Grants in one mapping: the kernel's own default limit for one request (parameter "limit" of xen-gntdev).
MAX_GRANTS: Final = 64 * 1024
#: Pieces of up to so many bytes are copied rather than mapped, see docs/benchmarks.md: a page.
COPY_EACH: Final = 4096
#: The same where mappings are kept: mapping costs once then, copying each time.
COPY_EACH_CACHED: Final = 1024
#: Bytes that are copied at most to save the second map call of a batch that reads and writes.
COPY_ALL: Final = 256 * 1024

_BOTH: Final = Protection.READ | Protection.WRITE


@final
class Grants:
    """Reaches what guests granted, through one handle that is open while something of it is in use.

    :param copy_each: pieces of up to so many bytes are copied, the others mapped; None: COPY_EACH, or
        COPY_EACH_CACHED with a cache.
    :param copy_all: bytes of one direction that are copied rather than mapped by a second call.
    :param cache: pages that stay mapped for later batches; then nothing is copied to save a call.
    """

    def __init__(self, *, copy_each: int | None = None, copy_all: int = COPY_ALL, cache: int = 0) -> None:
        if copy_each is None:
            copy_each = COPY_EACH_CACHED if cache else COPY_EACH
        self._copy_each = copy_each
        self._copy_all = 0 if cache else copy_all
        self._cache = GrantCache(cache) if cache else None
        self._bounces = BouncePool()
        self._table: ref[GrantTable] | None = None

    @property
    def table(self) -> GrantTable:
        """The handle; regions hold it, so that it closes with the last of them.

        :raises OSError: it cannot be opened.
        """
        table = self._table() if self._table is not None else None
        if table is None or table.closed:
            table = GrantTable()
            self._table = ref(table)
        return table

    def map_part(self, spec: RegionSpec, offset: int, n: int, write: bool) -> tuple[memoryview, int]:
        """Part of a region as a view that keeps it mapped, and its host address.

        :raises GuestMemoryError: the guest did not grant it so.
        """
        refs = _refs(spec, offset, n)
        if len(refs) > MAX_GRANTS:
            raise _too_many()
        view, address = self._map(partial(self.table.map_domain_grant_refs, spec.domid, refs), write)
        start = (spec.guest_addr + offset) % PAGE_SIZE
        return view[start : start + n], address + start

    def map_watched(self, spec: RegionSpec, offset: int, n: int, clear: int) -> tuple[memoryview, int]:
        """Like :meth:`map_part`, writable and within one page; the kernel zeroes a byte when it is unmapped.

        :param clear: the byte's offset in the part.
        :raises GuestMemoryError: the guest did not grant it so.
        """
        refs, start = _refs(spec, offset, n), (spec.guest_addr + offset) % PAGE_SIZE
        assert len(refs) == 1
        call = partial(self.table.map_grant_ref_notify, spec.domid, refs[0], clear=start + clear)
        view, address = self._map(call, True)
        return view[start : start + n], address + start

    def forget(self) -> None:
        """Unmap what is only kept for later."""
        if self._cache is not None:
            self._cache.clear()

    def reach(self, pieces: Any, n: int) -> Deferred:
        """The pieces of a batch, see :meth:`vhost.mem.GuestMemory.map_deferred`."""
        plan = ffi.new("struct vh_grants *", {"each": self._copy_each, "all": self._copy_all})
        views: list[object] = []
        try:
            if self._cache is not None:
                views += self._cache.find(pieces, n, self._copy_each)
            if bad := lib.vh_grants_plan(pieces, n, plan):
                piece = pieces[-1 - bad]
                raise GuestMemoryError(_beyond(piece.gpa, piece.len))
            for write in (0, 1):
                if count := plan.pages[write]:
                    views.append(self._map_pieces(pieces, n, write, count, plan.mixed))
            if not plan.bounce:
                return Deferred(views)
            space, start = self._bounces.take(plan.bounce)
            segments = ffi.new("struct vh_copy[]", plan.segments)
            lib.vh_grants_fetch(pieces, n, ffi.cast("void *", start), segments)
            self._copy(segments, plan.segments)
        except BaseException:
            views.clear()  # the traceback must not keep grants mapped
            raise
        return Deferred((*views, space), partial(self._store, pieces, n))

    def _map_pieces(self, pieces: Any, n: int, write: int, count: int, mixed: bool) -> memoryview:
        if count > MAX_GRANTS:
            raise _too_many()
        numbers, owners = ffi.new("uint32_t[]", count), ffi.new("uint32_t[]", count)
        lib.vh_grants_refs(pieces, n, write, numbers, owners)
        refs, domids = [memoryview(ffi.buffer(array)).cast("I") for array in (numbers, owners)]
        call: Callable[[Protection], GrantMapping]
        if mixed:
            call = partial(self.table.map_grant_refs, domids, refs)
        else:
            call = partial(self.table.map_domain_grant_refs, domids[0], refs)
        view, address = self._map(call, bool(write))
        lib.vh_grants_mapped(pieces, n, write, ffi.cast("void *", address))
        if self._cache is not None:
            self._cache.keep(pieces, n, write, view)
        return view

    def _map(self, call: Callable[[Protection], GrantMapping], write: bool) -> tuple[memoryview, int]:
        try:
            mapping = retry(partial(call, _BOTH if write else Protection.READ), errno.EAGAIN)
        except OSError as error:
            raise _unusable(error) from error
        return host_view(mapping.address, mapping.size, partial(_unmap, mapping)), mapping.address

    def _store(self, pieces: Any, n: int, copies: int) -> None:
        segments = ffi.new("struct vh_copy[]", copies)
        lib.vh_grants_store(pieces, n, segments)
        try:
            self._copy(segments, copies)
        except GuestMemoryError:
            lib.vh_grants_stored(pieces, n, segments)
            raise

    def _copy(self, segments: Any, count: int) -> None:
        if not count:
            return
        try:
            self.table.copy(memoryview(ffi.buffer(segments)))
        except OSError as error:
            raise _unusable(error) from error


def _refs(spec: RegionSpec, offset: int, n: int) -> range:
    # The grant references of a part of a region: consecutive, one for each Xen page it touches.
    first = (spec.guest_addr + offset - GRANT_BIT) // PAGE_SIZE
    end = (spec.guest_addr + offset + n - GRANT_BIT + PAGE_SIZE - 1) // PAGE_SIZE
    if end > REF_END:
        raise GuestMemoryError(_beyond(spec.guest_addr + offset, n))
    return range(first, end)


def _beyond(gpa: int, n: int) -> str:
    last = (gpa + n - 1 - GRANT_BIT) // PAGE_SIZE
    return (
        f"guest memory {gpa:#x}+{n:#x}: grant references end at {REF_END - 1:#x}, this would need {last:#x}"
    )


def _too_many() -> GuestMemoryError:
    return GuestMemoryError(
        f"more than {MAX_GRANTS} grants would have to be mapped at once, which the kernel refuses"
    )


def _unusable(error: OSError) -> GuestMemoryError:
    return GuestMemoryError(
        f"the guest's grants cannot be used: {error.strerror}; it did not grant them so, or took them back "
        f"while the device was using them, or this domain can map no more (gnttab_max_maptrack_frames)"
    )


def _unmap(mapping: GrantMapping, _: Any) -> None:
    # Runs when the last view is dropped: there is nobody to raise to.
    try:
        mapping.close()
    except OSError as error:
        _log.error("grants of a guest stay mapped: %s", error.strerror)
