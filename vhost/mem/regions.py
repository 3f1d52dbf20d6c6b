# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Regions of guest memory and the tables they form: address math for every build.

Knows guest-physical and front-end virtual addresses, and host addresses once somebody mapped them. Does not
map anything, and knows neither files nor grants.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, final

from vhost._core import ffi
from vhost.errors import GuestMemoryError, UnmappedError

__all__ = ("ADDRESS_END", "RegionSpec", "Region", "Table", "check_specs", "host_view")

#: One past the last address of a 64-bit address space.
ADDRESS_END: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """One region as the front-end describes it (vhost-user, "Memory region description").

    :param guest_addr: guest-physical address.
    :param size: bytes.
    :param user_addr: the same memory in the front-end's own address space.
    :param offset: where the region starts in the file that came with it, bytes.
    :param xen_flags: "xen mmap flags", 0 without XEN_MMAP.
    :param domid: the Xen domain the memory belongs to.
    """

    guest_addr: int
    size: int
    user_addr: int
    offset: int = 0
    xen_flags: int = 0
    domid: int = 0

    @property
    def guest_end(self) -> int:
        """One past the last guest-physical address."""
        return self.guest_addr + self.size

    @property
    def user_end(self) -> int:
        """One past the last front-end virtual address."""
        return self.user_addr + self.size

    def __str__(self) -> str:
        return (
            f"region guest {self.guest_addr:#x}..{self.guest_end:#x} "
            f"user {self.user_addr:#x}..{self.user_end:#x} offset {self.offset:#x}"
        )


@final
@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Region:
    """A region and its mapping. The mapping lasts as long as anything refers to ``view`` or a slice of it.

    :param spec: what the front-end described.
    :param view: the whole region in this process; ``None``: mapped per use.
    :param address: host address of ``view``, 0 without one.
    :param writable: whether devices may write here.
    :param guard: slot of ``vh_guard_add``, 0: none.
    :param source: what parts of it are mapped from, if there is no view.
    """

    spec: RegionSpec
    view: memoryview | None
    address: int
    writable: bool
    guard: int = 0
    source: object = None


def host_view(address: int, size: int, release: Callable[[Any], object]) -> memoryview:
    """The memory at a host address, as a view that owns it.

    :param release: called once, with a pointer, when the view and every slice of it are gone.
    """
    pointer = ffi.gc(ffi.cast("uint8_t *", address), release)
    return memoryview(ffi.buffer(pointer, size))


def check_specs(specs: Sequence[RegionSpec], limit: int) -> None:
    """Check that regions can form a table: sizes, wrap-around, overlaps, their number.

    :raises GuestMemoryError: they cannot.
    """
    if len(specs) > limit:
        raise GuestMemoryError(f"{len(specs)} memory regions, but at most {limit} are supported")
    for spec in specs:
        if spec.size <= 0:
            raise GuestMemoryError(f"{spec}: a region must have at least one byte, this one has {spec.size}")
        if min(spec.guest_addr, spec.user_addr, spec.offset) < 0:
            raise GuestMemoryError(f"{spec}: addresses and offsets cannot be negative")
        if max(spec.guest_end, spec.user_end, spec.offset + spec.size) > ADDRESS_END:
            raise GuestMemoryError(f"{spec}: address plus size wraps around 64 bits")
    _check_overlap("guest-physical", sorted((spec.guest_addr, spec.guest_end) for spec in specs))
    _check_overlap("front-end virtual", sorted((spec.user_addr, spec.user_end) for spec in specs))


def _check_overlap(space: str, ranges: list[tuple[int, int]]) -> None:
    for (start, end), (following, following_end) in pairwise(ranges):
        if following < end:
            raise GuestMemoryError(
                f"two memory regions overlap in {space} addresses: "
                f"{start:#x}..{end:#x} and {following:#x}..{following_end:#x}"
            )


@final
class Table:
    """An immutable snapshot of guest memory: regions sorted by guest-physical address, disjoint.

    Whoever holds the table, its ``cdata`` or a region of it holds the mappings. Safe to share between
    threads.

    :param regions: mapped regions; their specs must have passed :func:`check_specs` together.
    """

    __slots__ = ("regions", "cdata", "_starts", "_by_user", "_user_starts", "__weakref__")

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        #: The regions, by guest-physical address.
        self.regions: Final = tuple(sorted(regions, key=lambda region: region.spec.guest_addr))
        #: The same for the C core: ``struct vh_mem *``.
        self.cdata: Final = _cdata(self.regions)
        self._starts = [region.spec.guest_addr for region in self.regions]
        self._by_user = sorted(self.regions, key=lambda region: region.spec.user_addr)
        self._user_starts = [region.spec.user_addr for region in self._by_user]

    def find(self, gpa: int) -> Region | None:
        """The region that holds a guest-physical address."""
        index = bisect_right(self._starts, gpa) - 1
        if index < 0 or gpa >= self.regions[index].spec.guest_end:
            return None
        return self.regions[index]

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
        pieces = self.pieces(gpa, n)
        if len(pieces) > 1:
            raise GuestMemoryError(
                f"guest memory {gpa:#x}+{n:#x} crosses a region border at "
                f"{pieces[1][0].spec.guest_addr:#x} and is not contiguous here; take it as spans"
            )
        region, offset, _ = pieces[0]
        return region, offset

    def user_to_guest(self, user_addr: int, n: int) -> int:
        """Translate a front-end virtual range, which must lie in one region, to its guest-physical address.

        :raises UnmappedError: no region holds all of it.
        """
        index = bisect_right(self._user_starts, user_addr) - 1
        if index >= 0 and n >= 0:
            spec = self._by_user[index].spec
            if user_addr < spec.user_end and n <= spec.user_end - user_addr:
                return spec.guest_addr + (user_addr - spec.user_addr)
        raise UnmappedError(
            f"front-end address {user_addr:#x}+{n:#x} is not inside any one region of the memory table"
        )

    def __repr__(self) -> str:
        return f"<Table of {len(self.regions)} regions>"


def _cdata(regions: tuple[Region, ...]) -> Any:
    table = ffi.new("struct vh_mem *", {"n": len(regions), "region": len(regions)})
    for entry, region in zip(table.region, regions, strict=False):
        entry.gpa = region.spec.guest_addr
        entry.size = region.spec.size
        entry.uaddr = region.spec.user_addr
        entry.host = ffi.cast("uint8_t *", region.address)
        entry.guard = region.guard
        entry.domid = region.spec.domid if region.view is None else 0
        entry.writable = region.writable

    # C holds bare host pointers: with the regions as part of its destructor, the table keeps them mapped.
    def release(_: Any, _mapped: tuple[Region, ...] = regions) -> None:
        return None

    return ffi.gc(table, release)
