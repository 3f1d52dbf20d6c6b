# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The bindings themselves, by their prototypes: lifetimes of handles and mappings, errors in words."""

import ctypes
import errno
import gc
import os
import re
from array import array

import pytest

from pyxenctrl import CopySegment, ForeignMemory, GrantTable, Protection, ResourceKind
from pyxenctrl.gnttab import _numbers

from .fakes import FakeForeign, FakeGnttab

READ, BOTH = Protection.READ, Protection.READ | Protection.WRITE


def segments(*each: CopySegment) -> "ctypes.Array[CopySegment]":
    return (CopySegment * len(each))(*each)


def address_of(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(buffer))


def test_one_grant_and_several(gnttab: FakeGnttab) -> None:
    with GrantTable() as table:
        table.set_max_grants(64)
        with table.map_grant_ref(5, 7, Protection.READ) as one:
            assert (one.pages, one.size, gnttab.pages) == (1, 4096, 1)
        with table.map_grant_refs([5, 5], [9, 3], Protection.READ) as two:
            assert two.size == 8192
        assert gnttab.pages == 0
        with pytest.raises(ValueError, match="2 grant references need as many domains, not 1"):
            table.map_grant_refs([5], [9, 3], Protection.READ)
    assert gnttab.closed == 1


def test_errors_carry_errno_and_words(gnttab: FakeGnttab) -> None:
    gnttab.read_only = 8
    with GrantTable() as table, pytest.raises(OSError) as caught:
        table.map_grant_ref(5, 7, Protection.READ | Protection.WRITE)
    assert caught.value.errno == errno.EINVAL
    assert "1 grants of domain 5 from reference 0x7 on writable: Invalid argument" in str(caught.value)


def test_a_handle_lives_as_long_as_its_mappings(gnttab: FakeGnttab) -> None:
    table = GrantTable()
    mapping = table.map_domain_grant_refs(5, [1, 2], Protection.READ)
    table.close()
    table.close()
    assert table.closed
    assert gnttab.closed == 0
    with pytest.raises(OSError, match="closed") as caught:
        table.map_grant_ref(5, 1, Protection.READ)
    assert caught.value.errno == errno.EBADF
    mapping.close()
    mapping.close()
    assert (gnttab.closed, gnttab.unmaps) == (1, 1)


def test_what_is_forgotten_is_closed(gnttab: FakeGnttab, foreign: FakeForeign) -> None:
    GrantTable().map_grant_ref(5, 1, Protection.READ)
    ForeignMemory().map(5, [1], Protection.READ)
    gc.collect()
    assert (gnttab.pages, gnttab.closed, foreign.pages, foreign.closed) == (0, 1, 0, 1)


def test_foreign_frames_in_any_order(foreign: FakeForeign, guest: int) -> None:
    os.pwrite(guest, b"nine", 9 * 4096)
    with ForeignMemory() as memory, memory.map(5, iter([3, 9]), Protection.READ) as mapping:
        assert (mapping.pages, mapping.failed, foreign.prot) == (2, (), 1)
    with ForeignMemory() as memory, pytest.raises(ValueError, match="no frames"):
        memory.map(5, [], Protection.READ)


def test_frames_that_fail_are_an_error_unless_asked_for(foreign: FakeForeign) -> None:
    foreign.bad_frame, foreign.bad_count, foreign.bad_errno, foreign.bad_times = 4, 1, errno.EINVAL, 2
    with ForeignMemory() as memory:
        with memory.map(5, [3, 4], Protection.READ, partial=True) as mapping:
            assert mapping.failed == ((1, errno.EINVAL),)
        with pytest.raises(OSError, match="1 of 2 frames of domain 5, the first is 0x4") as caught:
            memory.map(5, [3, 4], Protection.READ)
        assert caught.value.errno == errno.EINVAL
        assert foreign.pages == 0


def test_a_call_that_fails_as_a_whole(foreign: FakeForeign) -> None:
    foreign.fail_errno, foreign.fail_times = errno.EPERM, 1
    with (
        ForeignMemory() as memory,
        pytest.raises(PermissionError, match="1 frames of domain 5 from frame 0x3"),
    ):
        memory.map(5, [3], Protection.READ)


def test_without_a_device(gnttab: FakeGnttab, foreign: FakeForeign) -> None:
    gnttab.memory = foreign.memory = -1
    with pytest.raises(FileNotFoundError, match=r"cannot open /dev/xen/gntdev .*module xen-gntdev loaded"):
        GrantTable()
    with pytest.raises(FileNotFoundError, match=r"cannot open /dev/xen/privcmd .*privileged Xen domain"):
        ForeignMemory()


def test_numbers_in_a_buffer_are_handed_on_as_they_are() -> None:
    refs = array("I", [7, 1 << 31, 9])
    place = refs.buffer_info()[0]
    assert ctypes.addressof(_numbers(refs)) == place
    assert ctypes.addressof(_numbers(memoryview(refs)[1:])) == place + 4
    for others in ([7, 9], memoryview(array("Q", [7, 9])), memoryview(array("I", [7, 0, 9]))[::2]):
        assert [*_numbers(others)] == [7, 9]
    assert [*_numbers(memoryview(refs).toreadonly())] == [*refs]
    for wrong in (-1, 1 << 32):
        with pytest.raises(OverflowError):
            _numbers([wrong])


def test_references_in_a_buffer(gnttab: FakeGnttab, guest: int) -> None:
    os.pwrite(guest, b"nine", 9 * 4096)
    with GrantTable() as table, table.map_domain_grant_refs(5, array("I", [3, 9]), READ) as mapping:
        assert ctypes.string_at(mapping.address + 4096, 4) == b"nine"
    assert (gnttab.call[0].ref, gnttab.call[0].count) == (3, 2)


def test_unmapping_clears_a_byte_and_notifies(gnttab: FakeGnttab, guest: int) -> None:
    os.pwrite(guest, b"abc", 9 * 4096)
    with GrantTable() as table:
        with table.map_grant_ref_notify(5, 9, BOTH, clear=1, port=17):
            assert (os.pread(guest, 3, 9 * 4096), gnttab.notified) == (b"abc", 0)
        assert os.pread(guest, 3, 9 * 4096) == b"a\0c"
        assert (gnttab.notified, gnttab.notified_port) == (1, 17)
        with table.map_grant_ref_notify(5, 9, READ, port=18):
            pass
        assert (gnttab.notified, gnttab.notified_port) == (2, 18)
        with table.map_grant_ref_notify(5, 9, READ):
            pass
        assert (os.pread(guest, 3, 9 * 4096), gnttab.notified) == (b"a\0c", 2)
        with pytest.raises(OSError, match="1 grants of domain 5 from reference 0x9 on read-only") as caught:
            table.map_grant_ref_notify(5, 9, READ, clear=0)
        assert caught.value.errno == errno.EINVAL
        for outside in (-1, 4096):
            with pytest.raises(ValueError, match="outside the page"):
                table.map_grant_ref_notify(5, 9, BOTH, clear=outside)


def test_copying_both_ways(gnttab: FakeGnttab, guest: int) -> None:
    os.pwrite(guest, b"from the guest", 2 * 4096 + 10)
    got, put = bytearray(14), bytearray(b"to the guest")
    with GrantTable() as table:
        table.copy(
            segments(
                CopySegment.from_grant(5, 2, 10, address_of(got), 14),
                CopySegment.to_grant(5, 3, 4096 - 12, address_of(put), 12),
            )
        )
        table.copy(segments())
    assert got == b"from the guest"
    assert os.pread(guest, 12, 4 * 4096 - 12) == put
    assert (gnttab.copies, gnttab.segments, gnttab.bytes, gnttab.maps) == (2, 2, 26, 0)


def test_segments_in_a_buffer(gnttab: FakeGnttab, guest: int) -> None:
    os.pwrite(guest, b"from the guest", 2 * 4096 + 10)
    got = bytearray(14)
    each = segments(*(CopySegment.from_grant(5, ref, 10, address_of(got), 14) for ref in (2, 256)))
    buffer = bytearray(bytes(each))
    with GrantTable() as table:
        table.copy(memoryview(buffer)[: ctypes.sizeof(CopySegment)])
        assert (got, gnttab.segments) == (b"from the guest", 1)
        with pytest.raises(OSError, match="segment 1 of 2"):
            table.copy(memoryview(buffer))
    assert [segment.status for segment in (CopySegment * 2).from_buffer(buffer)] == [0, -3]


def test_a_piece_that_cannot_be_copied_is_named(gnttab: FakeGnttab) -> None:
    gnttab.read_only = 4
    got = bytearray(1)
    good = CopySegment.from_grant(5, 2, 0, address_of(got), 1)
    with GrantTable() as table:
        for bad, code, words in [
            (CopySegment.from_grant(5, 256, 0, address_of(got), 1), errno.EINVAL, "GNTST_bad_gntref"),
            (CopySegment.to_grant(5, 3, 0, address_of(got), 1), errno.EINVAL, "GNTST_general_error"),
            (CopySegment.from_grant(6, 2, 0, address_of(got), 1), errno.ESRCH, "GNTST_bad_domain"),
        ]:
            each = segments(good, bad, good, bad)
            what = re.escape(f"cannot copy {bad} (segment 1 of 4): ") + f".* \\({words}\\)"
            with pytest.raises(OSError, match=what) as caught:
                table.copy(each)
            assert caught.value.errno == code
            assert [segment.status < 0 for segment in each] == [False, True, False, True]
        gnttab.bad_status, gnttab.bad_segments, gnttab.bad_skip = -12, 1, 1
        with pytest.raises(BlockingIOError, match=r"segment 1 of 2\): .* \(GNTST_eagain\)"):
            table.copy(segments(good, good))
        table.copy(segments(good, good))


def test_a_copy_that_fails_as_a_whole(gnttab: FakeGnttab) -> None:
    gnttab.copy_errno, gnttab.copy_times = errno.EFAULT, 1
    with GrantTable() as table:
        segment = CopySegment.from_grant(5, 2, 0, 8, 1)
        with pytest.raises(OSError, match="cannot copy 1 segments from or to grants") as caught:
            table.copy(segments(segment))
        assert (caught.value.errno, gnttab.copies) == (errno.EFAULT, 0)
    with pytest.raises(OSError, match="closed"):
        table.copy(segments(segment))


def test_a_handle_restricted_to_a_domain(foreign: FakeForeign) -> None:
    foreign.domid = -1
    with ForeignMemory() as memory:
        memory.restrict(5)
        memory.map(5, [1], READ).close()
        with pytest.raises(PermissionError, match="1 frames of domain 6"):
            memory.map(6, [1], READ)
        with pytest.raises(OSError, match="to domain 6") as caught:
            memory.restrict(6)
        assert caught.value.errno == errno.EINVAL


def test_resources(foreign: FakeForeign, guest: int) -> None:
    os.pwrite(guest, b"entry", 4096)
    foreign.resource_frames = 2
    with ForeignMemory() as memory:
        assert memory.resource_size(5, ResourceKind.GRANT_TABLE, 0) == 8192
        mapping = memory.map_resource(5, ResourceKind.GRANT_TABLE, 0, 1, 1, READ)
        assert (mapping.size, ctypes.string_at(mapping.address, 5)) == (4096, b"entry")
        with pytest.raises(OSError, match="cannot map 1 frames of the resource ioreq_server 3 of domain 5"):
            memory.map_resource(5, ResourceKind.IOREQ_SERVER, 3, 2, 1, READ)
        with pytest.raises(ProcessLookupError, match="size of the resource vmtrace_buf 0 of domain 6"):
            memory.resource_size(6, ResourceKind.VMTRACE_BUF, 0)
    assert (foreign.resources, foreign.closed) == (1, 0)
    mapping.close()
    assert (foreign.resources, foreign.unmaps, foreign.closed) == (0, 0, 1)
