# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Address math of memory tables; nothing is mapped here."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost._core import ffi
from vhost.errors import GuestMemoryError, UnmappedError
from vhost.mem import Region, RegionSpec, Table
from vhost.mem.table import check_specs

END = 1 << 64


def table(*specs: RegionSpec) -> Table:
    check_specs(specs, 509)
    return Table(Region(spec, None, 0, writable=True) for spec in specs)


LOW = RegionSpec(0x1000, 0x1000, 0x7000_0000)
NEXT = RegionSpec(0x2000, 0x800, 0x6000_0000)
FAR = RegionSpec(0x1_0000_0000, 0x4000, 0x9000_0000)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (RegionSpec(0, 0, 0), "at least one byte"),
        (RegionSpec(0, -1, 0), "at least one byte"),
        (RegionSpec(-1, 10, 0), "negative"),
        (RegionSpec(0, 10, 0, offset=-4096), "negative"),
        (RegionSpec(END - 1, 2, 0), "wraps"),
        (RegionSpec(0, 2, END - 1), "wraps"),
        (RegionSpec(0, 4096, 0, offset=END - 4095), "wraps"),
    ],
)
def test_impossible_regions_are_refused(spec: RegionSpec, complaint: str) -> None:
    with pytest.raises(GuestMemoryError, match=complaint):
        check_specs([spec], 509)


def test_the_very_end_of_both_address_spaces_can_be_used() -> None:
    last = RegionSpec(END - 0x1000, 0x1000, END - 0x1000)
    assert table(last).locate(END - 1, 1)[1] == 0xFFF
    assert table(last).user_to_guest(END - 1, 1) == END - 1
    with pytest.raises(UnmappedError):
        table(last).locate(END - 1, 2)


@pytest.mark.parametrize(
    ("guest", "user", "complaint"),
    [
        (0x1FFF, 0, "guest-physical.*0x1000..0x2000 and 0x1fff"),
        (0x0001, 0, "guest-physical"),
        (0x9000, 0x7000_0FFF, "front-end virtual"),
        (0x1000, 0x7000_0000, "guest-physical"),
    ],
)
def test_overlaps_are_refused_in_both_spaces(guest: int, user: int, complaint: str) -> None:
    with pytest.raises(GuestMemoryError, match=complaint):
        check_specs([LOW, RegionSpec(guest, 0x1000, user)], 509)


def test_the_number_of_regions_is_limited() -> None:
    specs = [RegionSpec(i * 4096, 4096, i * 4096) for i in range(4)]
    check_specs(specs, 4)
    with pytest.raises(GuestMemoryError, match="4 memory regions, but at most 3"):
        check_specs(specs, 3)


def test_regions_are_sorted_for_python_and_for_c() -> None:
    made = table(FAR, NEXT, LOW)
    assert [region.spec for region in made.regions] == [LOW, NEXT, FAR]
    assert made.cdata.n == 3
    entry = made.cdata.region[2]
    assert (entry.gpa, entry.size, entry.uaddr) == (FAR.guest_addr, FAR.size, FAR.user_addr)
    assert entry.host == ffi.NULL
    assert entry.writable == 1


@pytest.mark.parametrize(
    ("gpa", "found"),
    [
        (0xFFF, None),
        (0x1000, LOW),
        (0x1FFF, LOW),
        (0x2000, NEXT),
        (0x27FF, NEXT),
        (0x2800, None),
        (END, None),
    ],
)
def test_find_knows_the_borders(gpa: int, found: RegionSpec | None) -> None:
    region = table(LOW, NEXT, FAR).find(gpa)
    assert (region and region.spec) == found


def test_an_empty_table_finds_nothing() -> None:
    assert table().find(0) is None
    with pytest.raises(UnmappedError):
        table().locate(0, 0)


def test_pieces_cross_borders_and_locate_does_not() -> None:
    made = table(FAR, NEXT, LOW)
    pieces = made.pieces(0x1FF0, 0x20)
    assert [(region.spec, offset, n) for region, offset, n in pieces] == [(LOW, 0xFF0, 0x10), (NEXT, 0, 0x10)]
    with pytest.raises(GuestMemoryError, match="crosses a region border at 0x2000") as caught:
        made.locate(0x1FF0, 0x20)
    assert not isinstance(caught.value, UnmappedError)
    assert made.locate(0x1FF0, 0x10)[1] == 0xFF0


def test_a_hole_is_named() -> None:
    with pytest.raises(UnmappedError, match=r"0x27f0\+0x20 .*nothing is mapped at 0x2800"):
        table(LOW, NEXT, FAR).pieces(0x27F0, 0x20)
    with pytest.raises(LookupError):
        table(LOW).locate(0, 1)


def test_negative_lengths_are_refused() -> None:
    with pytest.raises(GuestMemoryError):
        table(LOW).locate(0x1800, -1)
    with pytest.raises(UnmappedError):
        table(LOW).user_to_guest(LOW.user_addr + 1, -1)


def test_user_addresses_are_translated_within_one_region() -> None:
    made = table(LOW, NEXT, FAR)
    assert made.user_to_guest(NEXT.user_addr + 0x7F0, 0x10) == 0x27F0
    assert made.user_to_guest(LOW.user_addr, 0x1000) == 0x1000
    for address, n in ((NEXT.user_addr + 0x7F1, 0x10), (NEXT.user_addr - 1, 2), (NEXT.user_end, 0), (0, END)):
        with pytest.raises(UnmappedError, match="not inside any one region"):
            made.user_to_guest(address, n)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=30), st.randoms())
def test_every_address_is_found_in_its_region(layout: list[tuple[int, int]], order: random.Random) -> None:
    specs, at = [], 0
    owner: dict[int, RegionSpec] = {}
    for size, gap in layout:
        spec = RegionSpec(at, size, 1000 + at * 2)
        owner |= dict.fromkeys(range(at, at + size), spec)
        specs.append(spec)
        at += size + gap
    order.shuffle(specs)
    made = table(*specs)
    for gpa in range(at + 1):
        region = made.find(gpa)
        assert (region and region.spec) == owner.get(gpa)
    # A range is in memory exactly if each of its bytes is, and its pieces add up to it.
    start = order.randrange(at)
    n = order.randrange(1, at - start + 1)
    if all(gpa in owner for gpa in range(start, start + n)):
        pieces = made.pieces(start, n)
        assert pieces[0][0].spec.guest_addr + pieces[0][1] == start
        assert sum(length for *_, length in pieces) == n
        assert all(offset + length <= region.spec.size for region, offset, length in pieces)
    else:
        with pytest.raises(UnmappedError):
            made.pieces(start, n)
