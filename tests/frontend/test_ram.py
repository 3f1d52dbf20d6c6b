# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory of a frontend: sealed, shared, and handed out without overlap."""

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost.frontend.ram import GUEST_BASE, USER_BASE, Buffer, GuestRam


@pytest.fixture
def ram(no_leaks: None) -> Iterator[GuestRam]:
    ram = GuestRam(1 << 16)
    yield ram
    ram.close()


def test_its_size_is_sealed(ram: GuestRam) -> None:
    assert fcntl.fcntl(ram.fileno(), fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    for size in (1 << 15, 1 << 17):
        with pytest.raises(PermissionError):
            os.ftruncate(ram.fileno(), size)
    assert not os.get_inheritable(ram.fileno())


def test_its_size_is_whole_pages(no_leaks: None) -> None:
    ram = GuestRam(1)
    assert ram.size == os.fstat(ram.fileno()).st_size == mmap.PAGESIZE
    ram.close()


def test_a_buffer_is_where_it_says(ram: GuestRam) -> None:
    ram.alloc(100)
    buffer = ram.alloc(5)
    buffer.view[:] = b"hello"
    with mmap.mmap(ram.fileno(), ram.size) as other:
        offset = buffer.gpa - GUEST_BASE
        assert other[offset : offset + 5] == b"hello"
    assert ram.user_address(buffer.gpa) == USER_BASE + offset


@pytest.mark.parametrize("align", [1, 16, 64, 4096, 16384])
def test_alignment(ram: GuestRam, align: int) -> None:
    ram.alloc(1)
    assert ram.alloc(10, align).gpa % align == 0


@pytest.mark.parametrize(("size", "align"), [(0, 1), (-1, 1), (1, 0), (1, 3)])
def test_no_such_buffer(ram: GuestRam, size: int, align: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes aligned to {align}"):
        ram.alloc(size, align)


def test_full_says_how_full(ram: GuestRam) -> None:
    ram.alloc(ram.size - 128)
    with pytest.raises(MemoryError, match=r"no 129 bytes .* 128 are free"):
        ram.alloc(129)
    ram.alloc(128)


def test_a_freed_buffer_is_gone(ram: GuestRam) -> None:
    buffer = ram.alloc(10)
    ram.free(buffer)
    with pytest.raises(ValueError, match="released"):
        buffer.view[0]
    with pytest.raises(ValueError, match="not allocated"):
        ram.free(buffer)
    again = ram.alloc(10)
    with pytest.raises(ValueError, match="not allocated"):
        ram.free(buffer)
    ram.free(again)


def test_close_releases_what_is_allocated(mappings: Callable[[], list[str]]) -> None:
    before = mappings()
    ram = GuestRam(1 << 16)
    buffer = ram.alloc(10)
    ram.close()
    ram.close()
    assert mappings() == before
    with pytest.raises(ValueError, match="released"):
        buffer.view[0]


def test_a_slice_outlives_close(mappings: Callable[[], list[str]]) -> None:
    before = mappings()
    ram = GuestRam(1 << 16)
    kept = ram.alloc(10).view[2:4]
    kept[:] = b"ab"
    ram.close()
    assert bytes(kept) == b"ab"
    kept.release()
    del kept, ram
    assert mappings() == before


@given(st.lists(st.one_of(st.integers(1, 9000), st.integers(-20, -1)), max_size=60))
def test_buffers_never_overlap_and_nothing_is_lost(steps: list[int]) -> None:
    ram = GuestRam(1 << 15)
    live: list[Buffer] = []
    try:
        for step in steps:
            if step > 0:
                try:
                    live.append(ram.alloc(step))
                except MemoryError:
                    assert live
            elif live:
                ram.free(live.pop(step % len(live)))
            spans = sorted((buffer.gpa, buffer.gpa + buffer.size) for buffer in live)
            assert all(end <= start for (_, end), (start, _) in pairwise(spans))
            assert all(start >= GUEST_BASE and end <= GUEST_BASE + ram.size for start, end in spans)
            assert ram.available == ram.size - sum(-(-buffer.size // 64) * 64 for buffer in live)
        for buffer in live:
            ram.free(buffer)
        assert ram.alloc(ram.size).gpa == GUEST_BASE  # all of it, in one piece again
    finally:
        ram.close()


def test_regions_lie_apart_and_buffers_within_one() -> None:
    with closing(GuestRam(10 * mmap.PAGESIZE, regions=4)) as ram:
        assert (ram.region_size, ram.size) == (3 * mmap.PAGESIZE, 12 * mmap.PAGESIZE)
        first, second, *_ = regions = ram.regions()
        assert len(regions) == 4
        assert first == (GUEST_BASE, 0)
        assert second[0] - first[0] > ram.region_size  # a hole between them
        assert second[1] == ram.region_size  # but not in the file
        buffers = [ram.alloc(2 * mmap.PAGESIZE) for _ in regions]  # two do not fit into one region
        assert [buffer.gpa for buffer in buffers] == [gpa for gpa, _ in regions]
        for i, buffer in enumerate(buffers):
            buffer.view[:] = bytes([i + 1]) * buffer.size
        for i, (_, offset) in enumerate(regions):
            assert os.pread(ram.fileno(), 2 * mmap.PAGESIZE, offset) == bytes([i + 1]) * (2 * mmap.PAGESIZE)
        with pytest.raises(MemoryError, match=f"{mmap.PAGESIZE} are free"):
            ram.alloc(2 * mmap.PAGESIZE)
        for buffer in buffers:
            ram.free(buffer)
        assert ram.alloc(3 * mmap.PAGESIZE).gpa == GUEST_BASE
        with pytest.raises(MemoryError):
            ram.alloc(4 * mmap.PAGESIZE)  # free pieces of two regions are not one


def test_buffer_of_the_region_that_is_asked_for() -> None:
    with closing(GuestRam(4 * mmap.PAGESIZE, regions=4)) as ram:
        assert ram.alloc(64, region=2).gpa == ram.regions()[2][0]
        with pytest.raises(MemoryError):
            ram.alloc(mmap.PAGESIZE, region=2)
