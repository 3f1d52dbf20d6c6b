# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The bindings themselves, by their prototypes: lifetimes of handles and mappings, errors in words."""

import errno
import gc
import os

import pytest

from pyxenctrl import ForeignMemory, GrantTable, Protection

from .fakes import FakeForeign, FakeGnttab


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
