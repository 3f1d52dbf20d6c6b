# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory as the rest of the package sees it: a changing table of regions, and scoped access to them.

Everything that does not depend on how memory is mapped is here; a build adds the mapping itself. Changes swap
in a new table and wait for nobody: what is in use stays mapped until it is given back.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from threading import Lock
from typing import Any, ClassVar, final

from vhost._core import lib
from vhost.errors import GuestMemoryError
from vhost.mem.regions import Region, RegionSpec
from vhost.mem.scopes import Access, Deferred, RingAccess, Spans
from vhost.mem.table import Draft, Table, check_specs

__all__ = ("GuestMemory",)


class GuestMemory(ABC):
    """The memory of one guest, as its front-end describes it.

    Safe to use from several threads. Every change is all or nothing, and takes ownership of the descriptors
    given with it: they are closed when it returns or raises.
    """

    #: Whether regions are Xen's, so that XEN_MMAP has to be negotiated.
    uses_xen: ClassVar[bool]
    #: Regions a table may have: what libvhost-user and the rust-vmm crates offer too.
    max_regions: ClassVar[int] = 509

    def __init__(self) -> None:
        self._lock = Lock()
        self._table = Table()

    @property
    def table(self) -> Table:
        """The current snapshot. It keeps its regions mapped for as long as it is held."""
        return self._table

    @final
    def replace(self, regions: Sequence[tuple[RegionSpec, int | None]]) -> None:
        """Put these regions in the place of all others (SET_MEM_TABLE).

        :raises GuestMemoryError: a region cannot be used, or they do not fit together.
        :raises OSError: the operating system refused to map one.
        """
        with self._lock:
            draft: Draft | None = None
            try:
                draft = check_specs([spec for spec, _ in regions], self.max_regions)
                for spec, fd in regions:
                    draft.back(self._map(spec, fd))
                self._table = Table(draft=draft)
            finally:
                draft = None  # the traceback of an exception must not keep regions mapped
                _close([fd for _, fd in regions])

    @final
    def add(self, spec: RegionSpec, fd: int | None) -> None:
        """Add one region (ADD_MEM_REG).

        :raises GuestMemoryError: it cannot be used, or does not fit with the others.
        :raises OSError: the operating system refused to map it.
        """
        with self._lock:
            draft: Draft | None = None
            try:
                draft = Draft(self._table, 1, self.max_regions)
                draft.add(spec)
                draft.back(self._map(spec, fd))
                self._table = Table(draft=draft)
            finally:
                draft = None  # the traceback of an exception must not keep regions mapped
                _close([fd])

    @final
    def remove(self, spec: RegionSpec) -> None:
        """Remove the region with this guest address, user address and size (REM_MEM_REG).

        :raises UnmappedError: there is none.
        """
        with self._lock:
            draft = Draft(self._table, 0, self.max_regions)
            draft.remove(spec)
            self._table = Table(draft=draft)

    @final
    def clear(self) -> None:
        """Remove every region."""
        with self._lock:
            self._table = Table()

    @final
    def damaged(self) -> RegionSpec | None:
        """A region whose file turned out shorter than the region, if there is one.

        An access beyond the end of the file found zeros there and was lost; the front-end is at fault.
        """
        for region in self._table.regions:
            if region.guard and lib.vh_guard_hit(region.guard):
                return region.spec
        return None

    @final
    def access(self, gpa: int, n: int, *, write: bool = False) -> Access:
        """A contiguous range of guest-physical memory, for a ``with`` block.

        :raises UnmappedError: not all of it is in guest memory.
        :raises GuestMemoryError: it crosses a region border, cannot be written, or a grant cannot be mapped.
        """
        region, offset = self._table.locate(gpa, n)
        return Access(self._view(region, offset, n, write))

    @final
    def spans(self, gpa: int, n: int, *, write: bool = False) -> Spans:
        """A range of guest-physical memory across region borders, for a ``with`` block.

        :raises UnmappedError: not all of it is in guest memory.
        :raises GuestMemoryError: part of it cannot be written, or a grant cannot be mapped.
        """
        pieces = self._table.pieces(gpa, n)
        return Spans([self._view(region, offset, length, write) for region, offset, length in pieces])

    @final
    def user_to_guest(self, user_addr: int, n: int) -> int:
        """Translate a front-end virtual range, which must lie in one region, to its guest-physical address.

        :raises UnmappedError: no region holds all of it.
        """
        return self._table.user_to_guest(user_addr, n)

    @final
    def ring(self, gpa: int, n: int, *, clear: int | None = None) -> RingAccess:
        """Memory of a ring, mapped until closed.

        :param clear: offset of a byte that is to become zero when this process is gone, where a build can.
        :raises UnmappedError: not all of it is in guest memory.
        :raises GuestMemoryError: it crosses a region border, cannot be written, or a grant cannot be mapped.
        """
        region, offset = self._table.locate(gpa, n)
        _check_writable(region, offset, n, True)
        return self._ring(region, offset, n, clear)

    def map_deferred(self, pieces: Any, n: int) -> Deferred:
        """Make reachable what a batch of requests needs and no region has mapped in advance.

        :param pieces: ``struct vh_defer[]``, of which ``n`` get their ``host``; they must not move before the
            result is closed.
        :raises GuestMemoryError: a grant cannot be used; nothing stays mapped.
        """
        raise GuestMemoryError("this build of vhost maps all guest memory in advance")

    @abstractmethod
    def _map(self, spec: RegionSpec, fd: int | None) -> Region:
        # Map one region whose numbers have been checked. The descriptor stays the caller's.
        raise NotImplementedError

    def _map_part(self, region: Region, offset: int, n: int, write: bool) -> tuple[memoryview, int]:
        # Map part of a region that has no view: the part's view, which keeps it mapped, and its host address.
        # Only for builds that make such regions.
        raise NotImplementedError

    def _ring(self, region: Region, offset: int, n: int, clear: int | None) -> RingAccess:
        return RingAccess(*self._use(region, offset, n, write=True))

    def _use(self, region: Region, offset: int, n: int, write: bool) -> tuple[memoryview, int]:
        _check_writable(region, offset, n, write)
        if region.view is not None:
            return region.view[offset : offset + n], region.address + offset
        return self._map_part(region, offset, n, write)

    def _view(self, region: Region, offset: int, n: int, write: bool) -> memoryview:
        view, _ = self._use(region, offset, n, write)
        return view if write else view.toreadonly()


def _check_writable(region: Region, offset: int, n: int, write: bool) -> None:
    if write and not region.writable:
        raise GuestMemoryError(
            f"guest memory {region.spec.guest_addr + offset:#x}+{n:#x} cannot be written: "
            f"the front-end passed its file descriptor read-only"
        )


def _close(fds: Sequence[int | None]) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)
