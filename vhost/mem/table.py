# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Tables of guest memory: address math for every build.

Knows guest-physical and front-end virtual addresses, and host addresses once somebody mapped them. The C core
(csrc/mem.c) does what depends on the number of regions.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, final

from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError, UnmappedError
from vhost.mem.regions import Region, RegionSpec

__all__ = ("ADDRESS_END", "Table", "Draft", "check_specs")

#: One past the last address of a 64-bit address space.
ADDRESS_END: Final = 1 << 64
#: In place of a region that is not mapped yet.
UNMAPPED: Final = Region(RegionSpec(0, 0, 0), None, 0, writable=False)


def check_specs(specs: Sequence[RegionSpec], limit: int) -> "Draft":
    """A table of regions that can form one, not mapped yet: their sizes, overlaps and number are right.

    :raises GuestMemoryError: they cannot.
    """
    draft = Draft(None, len(specs), limit)
    for spec in specs:
        draft.add(spec)
    return draft


@final
class Table:
    """An immutable snapshot of guest memory: regions sorted by guest-physical address, disjoint.

    Whoever holds the table, its ``cdata`` or a region of it holds the mappings. Safe to share between
    threads.

    :param regions: mapped regions, in any order.
    :param draft: in their place: a draft of which all regions are mapped, and which is not used any more.
    :raises GuestMemoryError: two of them overlap.
    """

    __slots__ = ("cdata", "_regions", "__weakref__")

    def __init__(self, regions: Iterable[Region] = (), *, draft: "Draft | None" = None) -> None:
        if draft is None:
            regions = tuple(regions)
            draft = Draft(None, len(regions), len(regions))
            for region in regions:
                draft.add(region.spec)
                draft.back(region)
        lib.vh_mem_index(draft.cdata)
        #: The regions for the C core: ``struct vh_mem *``.
        self.cdata: Final = draft.cdata
        self._regions: Final = draft.regions

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions, by guest-physical address."""
        return tuple(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    def find(self, gpa: int) -> Region | None:
        """The region that holds a guest-physical address."""
        if not 0 <= gpa < ADDRESS_END:
            return None
        index = lib.vh_mem_where(self.cdata, gpa)
        return None if index < 0 else self._regions[index]

    def pieces(self, gpa: int, n: int) -> list[tuple[Region, int, int]]:
        """Where a range of guest-physical addresses lies: (region, offset in it, bytes) in address order.

        An empty range is one empty piece; its address must be in guest memory all the same.

        :raises UnmappedError: not all of the range is in guest memory.
        """
        if n < 0:
            raise GuestMemoryError(f"a range of guest memory cannot have {n} bytes")
        found = []
        at, left = gpa, n
        while True:
            region = self.find(at)
            if region is None:
                raise UnmappedError(
                    f"guest memory {gpa:#x}+{n:#x} is not in the memory table: nothing is mapped at {at:#x}"
                )
            length = min(left, region.spec.guest_end - at)
            found.append((region, at - region.spec.guest_addr, length))
            at, left = at + length, left - length
            if not left:
                return found

    def locate(self, gpa: int, n: int) -> tuple[Region, int]:
        """The one region that holds a whole range, and the range's offset in it.

        :raises UnmappedError: not all of the range is in guest memory.
        :raises GuestMemoryError: the range crosses from one region into the next.
        """
        region = self.find(gpa)
        if region is not None and 0 <= n <= region.spec.guest_end - gpa:
            return region, gpa - region.spec.guest_addr
        pieces = self.pieces(gpa, n)
        if len(pieces) > 1:
            raise GuestMemoryError(
                f"guest memory {gpa:#x}+{n:#x} crosses a region border at "
                f"{pieces[1][0].spec.guest_addr:#x} and is not contiguous here; take it as spans"
            )
        return pieces[0][:2]

    def user_to_guest(self, user_addr: int, n: int) -> int:
        """Translate a front-end virtual range, which must lie in one region, to its guest-physical address.

        :raises UnmappedError: no region holds all of it.
        """
        if 0 <= user_addr < ADDRESS_END and 0 <= n < ADDRESS_END:
            index = lib.vh_mem_user(self.cdata, user_addr, n)
            if index >= 0:
                spec = self._regions[index].spec
                return spec.guest_addr + (user_addr - spec.user_addr)
        raise UnmappedError(
            f"front-end address {user_addr:#x}+{n:#x} is not inside any one region of the memory table"
        )

    def user_pieces(self, user_addr: int, n: int) -> list[tuple[Region, int, int]]:
        """Where a range of front-end virtual addresses lies: (region, offset in it, bytes) in address order.

        :raises UnmappedError: not all of the range is in guest memory.
        """
        found = []
        at, end = user_addr, user_addr + n
        while at < end:
            index = lib.vh_mem_user(self.cdata, at, 1)
            if index < 0:
                raise UnmappedError(
                    f"front-end address {user_addr:#x}+{n:#x} is not in the memory table: "
                    f"nothing is at {at:#x}"
                )
            region = self._regions[index]
            length = min(end, region.spec.user_end) - at
            found.append((region, at - region.spec.user_addr, length))
            at += length
        return found

    def overlapping(self, start: int, end: int) -> list[Region]:
        """The regions that have an address from `start` up to, not including, `end`."""
        first = bisect_right(self._regions, start, key=_end_of)
        last = bisect_left(self._regions, end, key=_start_of)
        return self._regions[first:last]

    def guest_address(self, address: int) -> int:
        """The guest-physical address, which in a table of translations is not the address itself.

        :raises UnmappedError: the address is in no region.
        """
        region, offset = self.locate(address, 1)
        return int(self.cdata.region[lib.vh_mem_where(self.cdata, region.spec.guest_addr)].log) + offset

    def __repr__(self) -> str:
        return f"<Table of {len(self._regions)} regions>"


@final
class Draft:
    """A table in the making: a copy of another one that may still change.

    :param table: whose regions it begins with; None: without any.
    :param more: regions there is to be room for; :param limit: how many a table may have in all.
    :raises GuestMemoryError: they would be more than that.
    """

    __slots__ = ("cdata", "regions")

    def __init__(self, table: Table | None, more: int, limit: int) -> None:
        #: The regions by guest-physical address; UNMAPPED where one is not mapped yet.
        self.regions: list[Region] = [] if table is None else table._regions.copy()
        if len(self.regions) + more > limit:
            raise GuestMemoryError(
                f"{len(self.regions) + more} memory regions, but at most {limit} are supported"
            )
        made = lib.vh_mem_new(ffi.NULL if table is None else table.cdata, more)
        if not made:
            raise MemoryError(f"no memory for a table with {more} more regions")
        #: ``struct vh_mem *``, without an index yet.
        self.cdata: Any = ffi.gc(made, partial(_free, self.regions))

    def add(self, spec: RegionSpec) -> None:
        """Put a region in that is not mapped yet.

        :raises GuestMemoryError: its numbers cannot be right, or it overlaps another one.
        """
        guest, size, user = spec.guest_addr, spec.size, spec.user_addr
        if size <= 0:
            raise GuestMemoryError(f"{spec}: a region must have at least one byte, this one has {size}")
        if guest < 0 or user < 0 or spec.offset < 0:
            raise GuestMemoryError(f"{spec}: addresses and offsets cannot be negative")
        last = ADDRESS_END - size
        if guest > last or user > last or spec.offset > last:
            raise GuestMemoryError(f"{spec}: address plus size wraps around 64 bits")
        at = lib.vh_mem_put(self.cdata, guest, size, user)
        if at < 0:
            raise self._overlap(spec, at)
        self.regions.insert(at, UNMAPPED)

    def _overlap(self, spec: RegionSpec, code: int) -> GuestMemoryError:
        user = code <= lib.VH_MEM_CLASH_USER
        entry = self.cdata.region[(lib.VH_MEM_CLASH_USER if user else lib.VH_MEM_CLASH) - code]
        if user:
            space, starts = "front-end virtual", ((spec.user_addr, spec.size), (entry.uaddr, entry.size))
        else:
            space, starts = "guest-physical", ((spec.guest_addr, spec.size), (entry.gpa, entry.size))
        (one, size), (other, other_size) = sorted(starts)
        return GuestMemoryError(
            f"two memory regions overlap in {space} addresses: "
            f"{one:#x}..{one + size:#x} and {other:#x}..{other + other_size:#x}"
        )

    def back(self, region: Region) -> None:
        """Say how a region that was added is mapped."""
        spec = region.spec
        at = lib.vh_mem_back(
            self.cdata,
            spec.guest_addr,
            region.address,
            region.guard,
            0 if region.mapped else spec.domid,
            region.writable,
        )
        self.regions[at] = region

    def enter(self, iova: int, region: Region, offset: int, n: int, *, read: bool, write: bool) -> None:
        """Put in the translation of `n` I/O addresses, to a part of a region of guest memory.

        :raises GuestMemoryError: the region is not mapped in advance, or there is a translation already.
        """
        if not region.mapped:
            raise GuestMemoryError(f"{region.spec} is mapped for its use, which translations cannot be")
        spec = RegionSpec(iova, n, iova)  # nobody looks for translations by their user address
        self.add(spec)
        address, writable = region.address + offset, write and region.writable
        self.back(Region(spec, None, address, writable, region.guard, mapping=region, readable=read))
        entry = self.cdata.region[lib.vh_mem_back(self.cdata, iova, address, region.guard, 0, writable)]
        entry.log, entry.readable = region.spec.guest_addr + offset, read

    def remove(self, spec: RegionSpec) -> None:
        """Take out the region with this guest address, user address and size.

        :raises UnmappedError: there is none.
        """
        index = lib.vh_mem_take(self.cdata, spec.guest_addr, spec.size, spec.user_addr)
        if index < 0:
            raise UnmappedError(f"no such region to remove: {spec}")
        del self.regions[index]


def _start_of(region: Region) -> int:
    return region.spec.guest_addr


def _end_of(region: Region) -> int:
    return region.spec.guest_end


def _free(regions: list[Region], table: Any) -> None:
    # C holds bare host pointers: with the regions as part of its destructor, the table keeps them mapped.
    lib.vh_mem_free(table)
