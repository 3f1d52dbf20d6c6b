# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory of a frontend: sealed, shared, and handed out without overlap."""

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
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
