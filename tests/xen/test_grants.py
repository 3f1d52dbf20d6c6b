# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Grants: in advance and per use, batches of them, and everything a guest can do wrong."""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from vhost._core import ffi
from vhost.errors import GuestMemoryError, UnmappedError
from vhost.mem import GuestMemory, Memory, RegionSpec
from vhost.mem.xen import MAX_GRANTS, TRIES

from .fakes import FakeGnttab

GRANT, NO_ADVANCE, NO_ADVANCE_OLD = 0x2, 0x100, 0x8
BIT = 1 << 63
READ, BOTH = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE


def region(first_ref: int, pages: int, flags: int, domid: int = 5) -> RegionSpec:
    gpa = BIT | first_ref << 12
    return RegionSpec(gpa, pages * 4096, gpa, 0, flags, domid)


@pytest.fixture
def memory(gnttab: FakeGnttab) -> Iterator[GuestMemory]:
    """References 0x10 to 0x8f of domain 5, mapped per use."""
    memory = Memory()
    memory.replace([(region(0x10, 0x80, GRANT | NO_ADVANCE), None)])
    yield memory
    memory.clear()  # which closes the handle too


def test_in_advance_means_one_writable_mapping(gnttab: FakeGnttab, guest: int) -> None:
    memory = Memory()
    memory.replace([(region(3, 4, GRANT), None)])
    assert (gnttab.maps, gnttab.count, gnttab.prot) == (1, 4, BOTH)
    with memory.access(BIT | 0x4FFE, 4, write=True) as view:
        view[:] = b"data"
    assert os.pread(guest, 4, 0x4FFE) == b"data"
    assert gnttab.maps == 1
    memory.clear()
    assert gnttab.pages == 0


def test_in_advance_regions_need_not_start_on_a_page(gnttab: FakeGnttab, guest: int) -> None:
    gpa = BIT | 0x3F80
    memory = Memory()
    memory.replace([(RegionSpec(gpa, 0x100, gpa, 0, GRANT, 5), None)])
    assert gnttab.count == 2
    with memory.access(gpa, 0x100, write=True) as view:
        view[:] = bytes(range(256))
    assert os.pread(guest, 0x102, 0x3F7F) == b"\0" + bytes(range(256)) + b"\0"


@pytest.mark.parametrize("flag", [NO_ADVANCE, NO_ADVANCE_OLD, NO_ADVANCE | NO_ADVANCE_OLD])
def test_both_encodings_of_no_advance_map_nothing_in_advance(gnttab: FakeGnttab, flag: int) -> None:
    memory = Memory()
    memory.replace([(region(0x10, 1 << 20, GRANT | flag), None)])
    assert gnttab.tries == 0
    assert memory.table.cdata.region[0].host == ffi.NULL


def test_an_access_maps_what_it_needs_and_unmaps_it(
    memory: GuestMemory, gnttab: FakeGnttab, guest: int
) -> None:
    os.pwrite(guest, b"page border", 0x11FFB)
    with memory.access(BIT | 0x11FFB, 11) as view:
        assert bytes(view) == b"page border"
        assert view.readonly
        assert (gnttab.pages, gnttab.prot) == (2, READ)
    assert (gnttab.pages, gnttab.maps, gnttab.unmaps) == (0, 1, 1)
    with memory.access(BIT | 0x12000, 4096, write=True) as view:
        view[-1] = 7
        assert (gnttab.pages, gnttab.prot) == (1, BOTH)
    assert gnttab.pages == 0
    assert os.pread(guest, 1, 0x12FFF) == b"\7"


def test_an_access_that_raises_unmaps_too(memory: GuestMemory, gnttab: FakeGnttab) -> None:
    with pytest.raises(ZeroDivisionError) as caught, memory.access(BIT | 0x11000, 8) as view:
        1 / view[0]
    assert gnttab.pages == 0
    assert caught.type is ZeroDivisionError


def test_an_access_never_entered_is_unmapped_with_its_last_reference(
    memory: GuestMemory, gnttab: FakeGnttab
) -> None:
    access = memory.access(BIT | 0x11000, 8)
    assert gnttab.pages == 1
    del access
    assert gnttab.pages == 0


def test_a_slice_that_escapes_keeps_the_grant_and_never_faults(
    memory: GuestMemory, gnttab: FakeGnttab
) -> None:
    with memory.access(BIT | 0x11000, 8) as view:
        part = view[2:4]
    assert bytes(part) == b"\0\0"
    assert gnttab.pages == 1
    part.release()
    assert gnttab.pages == 0


def test_device_readable_buffers_are_mapped_read_only(memory: GuestMemory, gnttab: FakeGnttab) -> None:
    gnttab.read_only = 0x20
    with memory.access(BIT | 0x11000, 8) as view:
        assert bytes(view) == bytes(8)
    with pytest.raises(GuestMemoryError, match="reference 0x11 on writable: Invalid argument"):
        memory.access(BIT | 0x11000, 8, write=True)


@pytest.mark.parametrize(("ref", "pages"), [(0x90, 1), (0x8F, 2), (0x0F, 1)])
def test_references_outside_the_region_are_refused(
    memory: GuestMemory, gnttab: FakeGnttab, ref: int, pages: int
) -> None:
    with pytest.raises(UnmappedError):
        memory.access(BIT | ref << 12, pages * 4096)
    with pytest.raises(UnmappedError):
        memory.map_deferred(memory.table, [(BIT | ref << 12, pages * 4096, True)])
    assert gnttab.tries == 0


def test_a_reference_the_guest_did_not_grant_is_an_error(memory: GuestMemory, gnttab: FakeGnttab) -> None:
    gnttab.granted = 0x30
    with pytest.raises(GuestMemoryError, match="2 grants of domain 5 from reference 0x2f on"):
        memory.access(BIT | 0x2F000, 8192)
    assert gnttab.pages == 0


def test_references_beyond_32_bits_are_refused_on_use(gnttab: FakeGnttab) -> None:
    memory = Memory()
    memory.replace([(RegionSpec(BIT, BIT, 0, 0, GRANT | NO_ADVANCE, 5), None)])
    with pytest.raises(GuestMemoryError, match="references end at 0xffffffff, this would need 0x100000000"):
        memory.access(BIT | 0xFFFF_FFFF << 12, 4097)
    assert gnttab.tries == 0


def test_spans_cross_from_advance_to_deferred(gnttab: FakeGnttab, guest: int) -> None:
    memory = Memory()
    memory.replace([(region(0x10, 1, GRANT), None), (region(0x11, 1, GRANT | NO_ADVANCE), None)])
    with memory.spans(BIT | 0x10FFE, 4, write=True) as views:
        assert [len(view) for view in views] == [2, 2]
        views[0][:], views[1][:] = b"ab", b"cd"
    assert os.pread(guest, 4, 0x10FFE) == b"abcd"
    assert gnttab.pages == 1
    with pytest.raises(GuestMemoryError, match="region border"):
        memory.access(BIT | 0x10FFE, 4)


def test_spans_that_fail_half_way_leave_nothing(gnttab: FakeGnttab) -> None:
    memory = Memory()
    memory.replace([(region(0x10 + i, 1, GRANT | NO_ADVANCE), None) for i in range(2)])
    gnttab.fail_errno, gnttab.fail_times, gnttab.fail_skip = errno.EINVAL, 1, 1
    with pytest.raises(GuestMemoryError) as caught:
        memory.spans(BIT | 0x10FFE, 4)
    assert (gnttab.maps, gnttab.pages) == (1, 0), "also while the exception is held"
    assert "Invalid argument" in str(caught.value)


def read(address: int, n: int) -> bytes:
    return ctypes.string_at(address, n)


def test_a_batch_is_one_call_for_each_protection(memory: GuestMemory, gnttab: FakeGnttab, guest: int) -> None:
    for page in (0x20, 0x33, 0x34, 0x50):
        os.pwrite(guest, bytes([page]) * 4096, page * 4096)
    wants = [
        (BIT | 0x20010, 16, False),
        (BIT | 0x50000, 4096, True),
        (BIT | 0x33FF0, 32, False),
        (BIT | 0x20000, 0, False),
        (BIT | 0x60800, 1, True),
        (BIT | 0x20FFF, 1, False),
    ]
    gnttab.read_only = 0x40
    with memory.map_deferred(memory.table, wants) as deferred:
        assert (gnttab.maps, gnttab.pages) == (2, 6)
        assert (gnttab.prot, gnttab.count) == (BOTH, 2)
        at = deferred.addresses
        assert read(at[0], 16) == b"\x20" * 16
        assert read(at[1], 4096) == b"\x50" * 4096
        assert read(at[2], 32) == b"\x33" * 16 + b"\x34" * 16
        assert read(at[5], 1) == b"\x20"
        ctypes.memset(at[4], 0x77, 1)
        assert [address & 0xFFF for address in (at[0], at[2], at[4], at[5])] == [0x10, 0xFF0, 0x800, 0xFFF]
    assert os.pread(guest, 1, 0x60800) == b"\x77"
    assert (gnttab.pages, gnttab.unmaps) == (0, 2)
    assert deferred.addresses == []
    deferred.close()


def test_a_batch_of_two_domains_is_still_one_call(gnttab: FakeGnttab) -> None:
    gnttab.domid = -1
    memory = Memory()
    memory.replace(
        [
            (region(0x10, 1, GRANT | NO_ADVANCE, domid=5), None),
            (region(0x11, 1, GRANT | NO_ADVANCE, domid=6), None),
        ]
    )
    with memory.map_deferred(memory.table, [(BIT | 0x10000, 8, False), (BIT | 0x11000, 8, False)]):
        assert (gnttab.maps, gnttab.count) == (1, 2)
    gnttab.domid = 5
    with pytest.raises(GuestMemoryError, match="2 grants of domain 5, 6"):
        memory.map_deferred(memory.table, [(BIT | 0x10000, 8, False), (BIT | 0x11000, 8, False)])


def test_a_batch_with_one_bad_part_maps_nothing(memory: GuestMemory, gnttab: FakeGnttab) -> None:
    gnttab.read_only = 0x40
    with pytest.raises(GuestMemoryError) as caught:
        memory.map_deferred(memory.table, [(BIT | 0x20000, 8, False), (BIT | 0x30000, 8, True)])
    assert (gnttab.maps, gnttab.pages) == (1, 0), "also while the exception is held"
    assert "writable" in str(caught.value)


def test_a_batch_cannot_map_without_limit(gnttab: FakeGnttab) -> None:
    memory = Memory()
    memory.replace([(region(0, 1 << 30, GRANT | NO_ADVANCE), None)])
    wants = [(BIT, 0xFFFF_FFFF, False)] * 1024
    with pytest.raises(GuestMemoryError, match=f"more than {MAX_GRANTS} grants"):
        memory.map_deferred(memory.table, wants)
    assert gnttab.tries == 0


def test_a_batch_outlives_the_region_it_uses(memory: GuestMemory, gnttab: FakeGnttab, guest: int) -> None:
    table = memory.table
    memory.clear()
    with memory.map_deferred(table, [(BIT | 0x20000, 1, True)]) as deferred:
        ctypes.memset(deferred.addresses[0], 0x42, 1)
    assert os.pread(guest, 1, 0x20000) == b"\x42"


def test_parts_that_are_mapped_already_need_no_call(gnttab: FakeGnttab) -> None:
    memory = Memory()
    memory.replace([(region(0x10, 2, GRANT), None)])
    with memory.map_deferred(memory.table, [(BIT | 0x11004, 8, True)]) as deferred:
        assert deferred.addresses == [memory.table.regions[0].address + 0x1004]
        memory.clear()
        assert gnttab.pages == 2
    assert (gnttab.maps, gnttab.pages) == (1, 0)


def test_a_ring_in_a_deferred_region_is_mapped_until_closed(
    memory: GuestMemory, gnttab: FakeGnttab, guest: int
) -> None:
    with memory.ring(BIT | 0x20800, 0x1000) as ring:
        assert (gnttab.pages, gnttab.prot) == (2, BOTH)
        ctypes.memset(ring.address, 0x11, 1)
        memory.clear()
        assert os.pread(guest, 1, 0x20800) == b"\x11"
        assert gnttab.pages == 2
    assert gnttab.pages == 0
    with pytest.raises(GuestMemoryError, match="closed"):
        ring.address


def test_what_is_busy_is_tried_again(memory: GuestMemory, gnttab: FakeGnttab) -> None:
    gnttab.fail_errno, gnttab.fail_times = errno.EAGAIN, 3
    with memory.access(BIT | 0x11000, 8):
        assert (gnttab.tries, gnttab.maps) == (4, 1)


def test_what_stays_busy_is_given_up(memory: GuestMemory, gnttab: FakeGnttab) -> None:
    gnttab.fail_errno, gnttab.fail_times = errno.EAGAIN, 1000
    with pytest.raises(GuestMemoryError, match="temporarily unavailable"):
        memory.access(BIT | 0x11000, 8)
    assert (gnttab.tries, gnttab.maps) == (TRIES, 0)


def test_other_errors_are_not_tried_again(memory: GuestMemory, gnttab: FakeGnttab) -> None:
    gnttab.fail_errno, gnttab.fail_times = errno.ENOMEM, 1
    with pytest.raises(GuestMemoryError, match="Cannot allocate memory"):
        memory.access(BIT | 0x11000, 8)
    assert gnttab.tries == 1


def test_without_xen_the_device_is_named(gnttab: FakeGnttab) -> None:
    gnttab.memory = -1
    with pytest.raises(FileNotFoundError, match="/dev/xen/gntdev"):
        Memory().replace([(region(0x10, 1, GRANT | NO_ADVANCE), None)])
