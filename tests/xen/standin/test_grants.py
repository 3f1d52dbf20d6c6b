# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Grants: in advance and per use, batches of them, and everything a guest can do wrong."""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from tests.xen.batch import BIT, Batch
from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError, UnmappedError
from vhost.mem import Deferred, GuestMemory, Memory, RegionSpec
from vhost.mem.grants import MAX_GRANTS
from vhost.mem.retry import TRIES
from vhost.mem.xen import XenMemory

from .fakes import FakeGnttab

GRANT, NO_ADVANCE, NO_ADVANCE_OLD = 0x2, 0x100, 0x8
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


def memory_with(**options: int) -> GuestMemory:
    """References 0x10 to 0x8f, with other choices of what is copied and kept."""
    memory = XenMemory(**options)
    memory.replace([(region(0x10, 0x80, GRANT | NO_ADVANCE), None)])
    return memory


WANTS = (
    (0x20010, 16, False),
    (0x50000, 4096, True),
    (0x33FF0, 32, False),
    (0x60800, 1, True),
    (0x20FFF, 1, False),
    (0x70700, 6000, True),
)


def fill(guest: int) -> None:
    for page in (0x20, 0x33, 0x34, 0x50):
        os.pwrite(guest, bytes([page]) * 4096, page * 4096)


def check_batch(batch: Batch, deferred: Deferred, guest: int) -> None:
    """What WANTS read is there, and what is written arrives, and nothing else."""
    assert batch.read(0) == b"\x20" * 16
    assert batch.read(2) == b"\x33" * 16 + b"\x34" * 16
    assert batch.read(4) == b"\x20"
    batch.write(3, b"\x77")
    batch.write(5, bytes(range(250)) * 24)
    batch.write(1, b"half" * 512)
    batch.done(deferred)
    assert os.pread(guest, 3, 0x607FF) == b"\0\x77\0"
    assert os.pread(guest, 6002, 0x706FF) == b"\0" + bytes(range(250)) * 24 + b"\0"
    assert os.pread(guest, 4096, 0x50000) == b"half" * 512 + b"\x50" * 2048


def test_a_batch_is_one_map_call_and_copies_what_is_small(gnttab: FakeGnttab, guest: int) -> None:
    fill(guest)
    gnttab.read_only = 0x40
    memory, batch = memory_with(copy_each=100), Batch(*WANTS)
    deferred = batch.reach(memory)
    assert [piece.how for piece in batch.defer] == [1, 0, 1, 1, 1, 0]
    assert (gnttab.maps, gnttab.count, gnttab.prot) == (1, 1 + 2, BOTH)
    assert (gnttab.copies, gnttab.segments) == (1, 4), "three pieces, one across a page border"
    check_batch(batch, deferred, guest)
    assert (gnttab.copies, gnttab.segments) == (2, 5), "one byte back"
    assert (gnttab.pages, gnttab.unmaps) == (0, 1)


def test_a_batch_that_reads_and_writes_is_one_map_call_all_the_same(gnttab: FakeGnttab, guest: int) -> None:
    fill(guest)
    gnttab.read_only = 0x40
    memory, batch = memory_with(copy_each=0), Batch(*WANTS)
    deferred = batch.reach(memory)
    assert [piece.how for piece in batch.defer] == [1, 0, 1, 0, 1, 0], "less is read than written"
    assert (gnttab.maps, gnttab.pages, gnttab.prot) == (1, 1 + 1 + 2, BOTH)
    assert [batch.at(i) & 0xFFF for i in (1, 3, 5)] == [0, 0x800, 0x700]
    check_batch(batch, deferred, guest)
    assert gnttab.copies == 1


def test_the_lesser_direction_is_mapped_too_when_it_is_large(gnttab: FakeGnttab, guest: int) -> None:
    fill(guest)
    gnttab.read_only = 0x40
    memory, batch = memory_with(copy_each=0, copy_all=48), Batch(*WANTS)
    deferred = batch.reach(memory)
    assert (gnttab.maps, gnttab.pages, gnttab.copies) == (2, 1 + 2 + 1 + 1 + 1 + 2, 0)
    check_batch(batch, deferred, guest)
    assert (gnttab.copies, gnttab.pages, gnttab.unmaps) == (0, 0, 2)


def test_a_batch_can_be_copied_whole(gnttab: FakeGnttab, guest: int) -> None:
    fill(guest)
    memory, batch = memory_with(copy_each=1 << 20), Batch(*WANTS)
    deferred = batch.reach(memory)
    assert (gnttab.tries, gnttab.copies) == (0, 1)
    assert [batch.at(i) % 4096 for i in (1, 5)] == [0, 0x700], "as in the guest's pages"
    check_batch(batch, deferred, guest)
    assert (gnttab.tries, gnttab.copies) == (0, 2)


def test_what_was_not_written_is_not_copied_back(memory: GuestMemory, gnttab: FakeGnttab, guest: int) -> None:
    os.pwrite(guest, b"the guest's own", 0x50000)
    batch = Batch((0x50000, 512, True), (0x51000, 512, True))
    deferred = batch.reach(memory)
    assert batch.read(0) == bytes(512), "nor does the device see what is there"
    batch.write(1, b"answer")
    batch.done(deferred)
    assert os.pread(guest, 15, 0x50000) == b"the guest's own"
    assert os.pread(guest, 7, 0x51000) == b"answer\0"
    assert gnttab.segments == 1


def test_memory_for_copies_is_used_again_and_begins_as_zeros(memory: GuestMemory, gnttab: FakeGnttab) -> None:
    first, second = Batch((0x50000, 512, True)), Batch((0x51000, 500, True))
    deferred = first.reach(memory)
    first.write(0, b"x" * 512)
    first.done(deferred)
    with second.reach(memory):
        assert second.at(0) == first.at(0)
        assert second.read(0) == bytes(500)
    assert gnttab.pages == 0


def test_memory_for_copies_is_not_used_again_while_somebody_looks_at_it(memory: GuestMemory) -> None:
    first, second = Batch((0x50000, 512, True)), Batch((0x51000, 512, True))
    deferred = first.reach(memory)
    first.write(0, b"seen")
    views = deferred.views
    deferred.close()
    with second.reach(memory):
        assert second.at(0) != first.at(0)
    assert first.read(0)[:4] == b"seen"
    del views
    with second.reach(memory):
        assert second.at(0) == first.at(0)


def test_a_batch_of_two_domains_is_still_one_call(gnttab: FakeGnttab) -> None:
    gnttab.domid = -1
    memory = memory_with(copy_each=0)
    with Batch((0x10000, 8, False), (0x11000, 8, False), domids=(5, 6)).reach(memory):
        assert (gnttab.maps, gnttab.count) == (1, 2)
    gnttab.domid = 5
    with pytest.raises(GuestMemoryError, match="2 grants of domain 5, 6"):
        Batch((0x10000, 8, False), (0x11000, 8, False), domids=(5, 6)).reach(memory)
    with pytest.raises(
        GuestMemoryError, match=r"8 bytes from offset 0x0 of grant 0x11 of domain 6.*no such domain"
    ):
        Batch((0x10000, 8, False), (0x11000, 8, False), domids=(5, 6)).reach(memory_with())


def test_a_batch_with_one_bad_part_maps_nothing(gnttab: FakeGnttab) -> None:
    gnttab.read_only = 0x40
    memory = memory_with(copy_each=0, copy_all=0)
    with pytest.raises(GuestMemoryError) as caught:
        Batch((0x20000, 8, False), (0x30000, 8, True)).reach(memory)
    assert (gnttab.maps, gnttab.pages) == (1, 0), "also while the exception is held"
    assert "writable" in str(caught.value)


def test_a_batch_whose_copies_fail_maps_nothing(gnttab: FakeGnttab) -> None:
    gnttab.granted = 0x30
    memory = memory_with(copy_each=1024)
    with pytest.raises(
        GuestMemoryError, match="3 bytes from offset 0x10 of grant 0x30 of domain 5"
    ) as caught:
        Batch((0x20000, 4096, True), (0x30010, 3, False)).reach(memory)
    assert (gnttab.maps, gnttab.pages) == (1, 0), "also while the exception is held"
    assert "took them back" in str(caught.value)


def test_copies_back_that_fail_are_an_error(memory: GuestMemory, gnttab: FakeGnttab) -> None:
    gnttab.read_only = 0x40
    batch = Batch((0x30000, 3, True))
    deferred = batch.reach(memory)
    batch.write(0, b"abc")
    with pytest.raises(GuestMemoryError, match="3 bytes to offset 0x0 of grant 0x30 of domain 5"):
        batch.done(deferred)


def test_copies_back_that_fail_as_a_whole_lose_all_answers(
    memory: GuestMemory, gnttab: FakeGnttab, guest: int
) -> None:
    batch = Batch((0x30000, 3, True), (0x31000, 3, True))
    deferred = batch.reach(memory)
    for index in range(2):
        batch.write(index, b"abc")
        batch.chain[index].state = lib.VH_DONE
    gnttab.copy_errno, gnttab.copy_times = errno.EFAULT, 1
    with pytest.raises(GuestMemoryError, match="cannot copy 2 segments"):
        batch.done(deferred)
    assert lib.vh_grants_lose(batch.cdata) == 2
    assert os.pread(guest, 3, 0x30000) == bytes(3)


def test_a_batch_cannot_map_without_limit(gnttab: FakeGnttab) -> None:
    memory = Memory()
    memory.replace([(region(0, 1 << 30, GRANT | NO_ADVANCE), None)])
    batch = Batch(*[(0, 0xFFFF_FFFF, False)] * 1024)
    with pytest.raises(GuestMemoryError, match=f"more than {MAX_GRANTS} grants"):
        batch.reach(memory)
    assert gnttab.tries == 0


def test_a_batch_cannot_use_references_beyond_32_bits(memory: GuestMemory, gnttab: FakeGnttab) -> None:
    with pytest.raises(GuestMemoryError, match="references end at 0xffffffff, this would need 0x100000000"):
        Batch((0x20000, 1, True), (0xFFFF_FFFF_FFF, 2, True)).reach(memory)
    assert gnttab.tries == 0


def test_a_batch_outlives_the_region_it_uses(memory: GuestMemory, gnttab: FakeGnttab, guest: int) -> None:
    batches = [Batch((0x20000, 5000, True)), Batch((0x30000, 5, True))]
    deferred = [batch.reach(memory) for batch in batches]
    memory.clear()
    for batch, its in zip(batches, deferred, strict=True):
        batch.write(0, b"last")
        batch.done(its)
    assert (os.pread(guest, 4, 0x20000), os.pread(guest, 4, 0x30000)) == (b"last", b"last")


def test_a_page_is_copied_by_default_and_kept_where_mappings_are_kept(gnttab: FakeGnttab) -> None:
    wants = (0x20000, 16, False), (0x50000, 4096, True), (0x60000, 4097, True)
    hows = []
    for memory in (memory_with(), memory_with(grant_cache=4)):
        batch = Batch(*wants)
        batch.reach(memory).close()
        hows.append([piece.how for piece in batch.defer])
        memory._grants.forget()
    assert hows == [[lib.VH_COPY, lib.VH_COPY, lib.VH_MAP], [lib.VH_COPY, lib.VH_MAP, lib.VH_MAP]]


# ---- mappings that are kept ----


def test_kept_grants_are_mapped_once(gnttab: FakeGnttab, guest: int) -> None:
    fill(guest)
    memory = memory_with(copy_each=100, grant_cache=16)
    for turn in range(5):
        batch = Batch((0x50000, 4096, True), (0x33000, 4096, False), (0x20000, 16, False))
        deferred = batch.reach(memory)
        assert (gnttab.maps, gnttab.pages, gnttab.copies) == (2, 2, turn + 1)
        assert batch.read(1) == b"\x33" * 4096
        batch.write(0, b"turn %d" % turn)
        batch.done(deferred)
        assert os.pread(guest, 6, 0x50000) == b"turn %d" % turn
    assert gnttab.pages == 2
    with memory.ring(BIT | 0x10000, 16):
        pass
    assert gnttab.pages == 0, "the ring has stopped, and the guest may want its grants back"
    memory.clear()


def test_the_least_used_are_unmapped_first(gnttab: FakeGnttab) -> None:
    memory = memory_with(copy_each=0, grant_cache=4)
    a, b, c = (0x20000, 8192, True), (0x30000, 8192, True), (0x40000, 8192, True)
    for want, maps in ((a, 1), (b, 2), (a, 2), (c, 3), (a, 3), (b, 4), (c, 5)):
        Batch(want).reach(memory).close()
        assert (gnttab.maps, gnttab.pages) == (maps, min(maps, 2) * 2), want
    memory.clear()
    memory._grants.forget()


def test_more_than_the_cache_is_not_kept(gnttab: FakeGnttab) -> None:
    memory = memory_with(copy_each=0, grant_cache=4)
    Batch((0x20000, 5 * 4096, True)).reach(memory).close()
    assert gnttab.pages == 0


def test_what_is_in_use_stays_when_it_is_dropped(gnttab: FakeGnttab, guest: int) -> None:
    memory = memory_with(copy_each=0, grant_cache=2)
    first = Batch((0x20000, 8192, True))
    deferred = first.reach(memory)
    Batch((0x30000, 8192, True)).reach(memory).close()
    assert gnttab.pages == 4
    first.write(0, b"still here")
    deferred.close()
    assert gnttab.pages == 2
    assert os.pread(guest, 10, 0x20000) == b"still here"
    memory._grants.forget()


# ---- rings ----


def test_the_kernel_clears_the_used_flags_when_a_ring_goes(gnttab: FakeGnttab, guest: int) -> None:
    memory = memory_with()
    for gpa, n, pages in ((0x20800, 0x100, 1), (0x20800, 0x1000, 3)):
        os.pwrite(guest, b"\1\1", gpa)
        with memory.ring(BIT | gpa, n, clear=0) as ring:
            assert gnttab.pages == pages, (
                "one page is watched by its mapping, of several the one with the byte"
            )
            assert ring.view[0] == 1
        assert os.pread(guest, 2, gpa) == b"\0\1"
    memory.clear()
    memory.replace([(region(0x20, 4, GRANT), None)])
    os.pwrite(guest, b"\1", 0x21000)
    with memory.ring(BIT | 0x21000, 0x80, clear=0):
        assert gnttab.pages == 5
    assert os.pread(guest, 1, 0x21000) == b"\0"
    memory.clear()


def test_a_region_granted_read_only_is_mapped_so_in_advance(gnttab: FakeGnttab) -> None:
    gnttab.read_only = 0x40
    memory = Memory()
    memory.replace([(region(0x3F, 1, GRANT), None), (region(0x40, 1, GRANT), None)])
    assert [found.writable for found in memory.table.regions] == [False, True]
    with memory.access(BIT | 0x3F000, 8) as view:
        assert bytes(view) == bytes(8)
    with pytest.raises(GuestMemoryError, match="cannot be written"):
        memory.ring(BIT | 0x3F000, 8)
    memory.clear()


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
