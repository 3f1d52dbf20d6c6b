# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The tables of the C core, compared with a list: sparse, dense, to the ends of 64 bits, changing."""

import random

import pytest

from vhost._core import lib
from vhost.errors import GuestMemoryError, UnmappedError
from vhost.mem import Region, RegionSpec, Table
from vhost.mem.table import Draft

END = 1 << 64
GIB = 1 << 30
GRANTS = 1 << 63


def made(*places: tuple[int, int]) -> Table:
    specs = [RegionSpec(start, size, start) for start, size in places]
    return Table(Region(spec, None, 0, writable=True) for spec in specs)


def expected(table: Table, gpa: int) -> int:
    starts = [(region.spec.guest_addr, region.spec.guest_end) for region in table.regions]
    return next((index for index, (start, end) in enumerate(starts) if start <= gpa < end), -1)


def check(table: Table, random_addresses: list[int]) -> None:
    borders = [
        edge + step
        for region in table.regions
        for edge in (region.spec.guest_addr, region.spec.guest_end)
        for step in (-1, 0, 1)
    ]
    for gpa in (*borders, *random_addresses, 0, END - 1):
        if 0 <= gpa < END:
            assert lib.vh_mem_where(table.cdata, gpa) == expected(table, gpa), hex(gpa)


@pytest.mark.parametrize(
    "places",
    [
        [],
        [(0, 1)],
        [(0, END - 1)],
        [(END - 1, 1)],
        [(0, 1), (END - 1, 1)],
        [(0, 3 * GIB), (4 * GIB, 60 * GIB), (256 * GIB, GIB)],
        [(0, GIB), (GRANTS, 1 << 44), (END - 4096, 4096)],
        [(GRANTS + index * 4096, 4096) for index in range(509)],
        [*((index << 20, 1 << 20) for index in range(508)), (1 << 40, GIB)],
        [*((index * 3, 2) for index in range(400)), *((END - 1 - index * 3, 2) for index in range(1, 100))],
        [((1 << index) - 1, 1) for index in range(64)],
    ],
    ids=lambda places: f"{len(places)}-{hash(tuple(places)) & 0xFFFF:x}",
)
def test_every_address_is_found_in_any_layout(places: list[tuple[int, int]]) -> None:
    chance = random.Random(len(places))
    check(made(*places), [chance.getrandbits(chance.randint(1, 64)) for _ in range(2000)])


def test_tables_change_one_region_at_a_time_like_a_list() -> None:
    chance = random.Random(1)
    table = Table()
    there: dict[int, RegionSpec] = {}
    for _ in range(1500):
        draft: Draft
        if there and chance.random() < 0.35:
            spec = there.pop(chance.choice(list(there)))
            draft = Draft(table, 0, 509)
            draft.remove(spec)
        else:
            start, size = (
                chance.getrandbits(chance.randint(4, 64)),
                1 + chance.getrandbits(chance.randint(1, 56)),
            )
            spec = RegionSpec(start, min(size, END - start), chance.getrandbits(60))
            clash = any(
                one < other_end and other < one_end
                for old in there.values()
                for one, one_end, other, other_end in (
                    (spec.guest_addr, spec.guest_end, old.guest_addr, old.guest_end),
                    (spec.user_addr, spec.user_end, old.user_addr, old.user_end),
                )
            )
            draft = Draft(table, 1, 1509)
            if clash:
                with pytest.raises(GuestMemoryError, match="overlap"):
                    draft.add(spec)
                continue
            draft.add(spec)
            draft.back(Region(spec, None, 0, writable=True))
            there[start] = spec
        before, old = table, table.regions
        table = Table(draft=draft)
        assert [region.spec for region in table.regions] == [there[start] for start in sorted(there)]
        assert before.regions == old, "a table does not change"
        check(table, [chance.getrandbits(64)])
    assert len(there) > 20


@pytest.mark.parametrize(
    "change", [{"guest_addr": 0x1001}, {"size": 0x2000}, {"user_addr": 1}, {"guest_addr": 0}]
)
def test_only_the_very_region_is_removed(change: dict[str, int]) -> None:
    numbers = {"guest_addr": 0x1000, "size": 0x1000, "user_addr": 0x1000}
    draft = Draft(made((0x1000, 0x1000)), 0, 509)
    with pytest.raises(UnmappedError, match="no such region"):
        draft.remove(RegionSpec(**numbers | change))
    draft.remove(RegionSpec(**numbers))
    assert Table(draft=draft).regions == ()
