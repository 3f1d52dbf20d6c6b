# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Which Xen regions are accepted, and how foreign memory is mapped."""

import errno
import os
from collections import Counter
from collections.abc import Callable

import pytest

from vhost.errors import GuestMemoryError, UnmappedError
from vhost.mem import Memory, RegionSpec
from vhost.mem.foreign import CHUNK
from vhost.mem.retry import TRIES

from .fakes import FakeGnttab
from .frames import Frames

FOREIGN, GRANT, NO_ADVANCE, NO_ADVANCE_OLD = 0x1, 0x2, 0x100, 0x8
BIT = 1 << 63


def spec(gpa: int = 0x4000, size: int = 0x4000, flags: int = FOREIGN, domid: int = 5) -> RegionSpec:
    return RegionSpec(gpa, size, gpa, 0, flags, domid)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (0, "neither FOREIGN nor GRANT.*uninstall vhost-xen"),
        (NO_ADVANCE, "neither FOREIGN nor GRANT"),
        (FOREIGN | GRANT, "FOREIGN goes with neither"),
        (FOREIGN | NO_ADVANCE, "FOREIGN goes with neither"),
        (FOREIGN | NO_ADVANCE_OLD, "FOREIGN goes with neither"),
        (GRANT | 0x4, "unknown flags 0x4"),
        (FOREIGN | 1 << 31, "unknown flags 0x80000000"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    flags: int, complaint: str, frames: Frames, gnttab: FakeGnttab
) -> None:
    memory = Memory()
    with pytest.raises(GuestMemoryError, match=complaint):
        memory.replace([(spec(BIT | 0x4000, flags=flags), None)])
    assert (frames.calls, gnttab.opened) == ([], 0)


@pytest.mark.parametrize(
    ("region", "complaint"),
    [
        (spec(domid=0x7FF0), "no such domain"),
        (spec(domid=0xFFFF_FFFF), "no such domain"),
        (spec(gpa=0x4010), "whole pages of 4096"),
        (spec(size=0x4001), "whole pages of 4096"),
        (spec(gpa=0, size=1 << 62), "a foreign region can have 0x4000000000 bytes"),
        (spec(gpa=0x4000, flags=GRANT), "bit 63"),
        (spec(gpa=0x4000, flags=GRANT | NO_ADVANCE), "bit 63"),
        (spec(gpa=BIT | 0x1000_0000_0000 - 0x1000, size=0x2000, flags=GRANT), "references end at 0xffffffff"),
        (spec(gpa=BIT, size=65537 * 4096, flags=GRANT), "more than 65536 grants"),
    ],
)
def test_regions_that_cannot_be_are_refused(
    region: RegionSpec, complaint: str, frames: Frames, gnttab: FakeGnttab
) -> None:
    with pytest.raises(GuestMemoryError, match=complaint):
        Memory().replace([(region, None)])
    assert (frames.calls, gnttab.tries) == ([], 0)


def test_a_foreign_region_is_mapped_whole(frames: Frames, guest: int) -> None:
    memory = Memory()
    memory.replace([(spec(), None)])
    assert (frames.calls, frames.pages, frames.open) == ([("map", 4)], 4, 0)
    assert frames.restricted == [5]
    os.pwrite(guest, b"from the guest", 0x5FFA)
    with memory.access(0x5FFA, 14) as view:
        assert bytes(view) == b"from the guest"
    with memory.access(0x4000, 4, write=True) as view:
        view[:] = b"back"
    assert os.pread(guest, 4, 0x4000) == b"back"
    with pytest.raises(UnmappedError):
        memory.access(0x8000, 1)
    memory.clear()
    assert frames.pages == 0


def test_large_regions_are_mapped_in_chunks(frames: Frames, guest: int) -> None:
    os.ftruncate(guest, (2 * CHUNK + 5) * 4096)
    os.pwrite(guest, b"border", CHUNK * 4096 - 3)
    memory = Memory()
    memory.replace([(spec(gpa=0, size=(2 * CHUNK + 5) * 4096), None)])
    assert frames.calls == [("map", CHUNK), ("map", CHUNK), ("map", 5)]
    with memory.access(CHUNK * 4096 - 3, 6) as view:
        assert bytes(view) == b"border"
    memory.clear()
    frames.bad, frames.bad_errno, frames.bad_times = range(2 * CHUNK + 1, 2 * CHUNK + 3), errno.EINVAL, 9
    with pytest.raises(GuestMemoryError, match=r"2 of 5 frames .*: 0x8001 \(Invalid argument\), 0x8002 "):
        memory.replace([(spec(gpa=0, size=(2 * CHUNK + 5) * 4096), None)])
    assert frames.pages == 0


def test_machine_frames_are_looked_up_for_pv_domains(frames: Frames, guest: int) -> None:
    frames.pv = {4: 9, 5: 7, 6: 8, 7: 20}
    os.pwrite(guest, b"frame 7", 7 * 4096)
    memory = Memory()
    memory.replace([(spec(), None)])
    with memory.access(0x5000, 7) as view:
        assert bytes(view) == b"frame 7"
    frames.bad, frames.bad_errno, frames.bad_times = range(8, 9), errno.EPERM, 1
    with pytest.raises(GuestMemoryError, match=r"1 of 4 frames .*: 0x6 \(Operation not permitted\)"):
        memory.replace([(spec(), None)])


def test_descriptors_of_the_front_end_are_closed(
    frames: Frames, open_fds: Callable[[], Counter[str]]
) -> None:
    memory = Memory()
    before = open_fds()
    memory.replace([(spec(), os.open("/dev/null", os.O_RDWR))])
    assert open_fds() == before
    with pytest.raises(GuestMemoryError):
        memory.add(spec(), os.open("/dev/null", os.O_RDWR))
    with pytest.raises(GuestMemoryError):
        memory.add(spec(gpa=0x10_0000, domid=0xFFFF), os.open("/dev/null", os.O_RDWR))
    assert open_fds() == before
    assert frames.maps == 1


def test_a_descriptor_of_privcmd_is_used_by_who_may_not_open_it(
    frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames.closed_to_us = True
    with pytest.raises(FileNotFoundError, match="/dev/xen/privcmd"):
        Memory().replace([(spec(), os.open("/dev/null", os.O_RDWR))])
    monkeypatch.setattr("vhost.mem.foreign.is_privcmd", lambda fd: True)
    memory = Memory()
    memory.replace([(spec(), os.open("/dev/null", os.O_RDWR))])
    assert (frames.pages, frames.given, frames.restricted) == (4, 1, [])
    frames.closed_to_us = False
    memory.replace([(spec(), os.open("/dev/null", os.O_RDWR))])
    assert (frames.pages, frames.given, frames.restricted) == (4, 1, [5])


def test_frames_that_fail_are_named_and_the_rest_is_unmapped(frames: Frames) -> None:
    frames.bad, frames.bad_errno, frames.bad_times = range(6, 8), errno.EINVAL, 100
    memory = Memory()
    with pytest.raises(GuestMemoryError, match=r"domain 5: 2 of 4 frames .*: 0x6 \(Invalid argument\), 0x7"):
        memory.replace([(spec(), None)])
    assert (frames.calls, frames.pages) == ([("map", 4)], 0)
    assert memory.table.regions == ()


def test_a_long_list_of_failed_frames_is_cut(frames: Frames) -> None:
    frames.bad, frames.bad_errno, frames.bad_times = range(100), errno.EINVAL, 1
    with pytest.raises(GuestMemoryError, match=r"60 of 64 frames .* and 52 more"):
        Memory().replace([(spec(gpa=40 * 4096, size=64 * 4096), None)])


def test_paged_out_frames_alone_are_tried_again(frames: Frames) -> None:
    frames.bad, frames.bad_errno, frames.bad_times = range(5, 7), errno.ENOENT, 3
    memory = Memory()
    memory.replace([(spec(), None)])
    assert frames.calls == [("map", 4), ("retry", 2), ("retry", 2), ("retry", 2)]
    assert frames.pages == 4


def test_frames_that_stay_paged_out_are_given_up(frames: Frames) -> None:
    frames.bad, frames.bad_errno, frames.bad_times = range(5, 6), errno.ENOENT, 1000
    with pytest.raises(GuestMemoryError, match="1 of 4 frames cannot be mapped: 0x5"):
        Memory().replace([(spec(), None)])
    assert (len(frames.calls), frames.pages) == (TRIES, 0)


def test_a_domain_that_is_gone_is_an_error_at_once(frames: Frames) -> None:
    with pytest.raises(GuestMemoryError, match=r"there is no domain 6"):
        Memory().replace([(spec(domid=6), None)])
    assert frames.calls == []


def test_without_xen_the_device_is_named(frames: Frames) -> None:
    frames.memory = -1
    with pytest.raises(FileNotFoundError, match="/dev/xen/privcmd"):
        Memory().replace([(spec(), None)])


def test_all_or_nothing_when_a_later_region_fails(frames: Frames) -> None:
    memory = Memory()
    memory.replace([(spec(), None)])
    with pytest.raises(GuestMemoryError) as caught:
        memory.replace([(spec(gpa=0x10000), None), (spec(gpa=0x20000, domid=9), None)])
    assert frames.pages == 4, "also while the exception is held"
    assert "domain 9" in str(caught.value)
    assert [region.spec.guest_addr for region in memory.table.regions] == [0x4000]


def test_a_removed_foreign_region_stays_for_who_uses_it(frames: Frames, guest: int) -> None:
    memory = Memory()
    memory.replace([(spec(), None)])
    ring = memory.ring(0x4000, 64)
    memory.remove(spec())
    assert frames.pages == 4
    ring.view[:4] = b"ring"
    assert os.pread(guest, 4, 0x4000) == b"ring"
    ring.close()
    assert frames.pages == 0


def test_a_frame_that_goes_away_does_not_kill(frames: Frames, guest: int) -> None:
    memory = Memory()
    memory.replace([(spec(), None)])
    os.ftruncate(guest, 0x5000)
    with memory.access(0x4000, 0x4000, write=True) as view:
        view[0x2000] = 1
        assert view[0x3000] == 0
    assert memory.damaged() == spec()
