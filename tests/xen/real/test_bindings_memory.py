# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The bindings on a running Xen: memory and resources of other domains, by the library and by the device."""

import ctypes
import errno
import mmap
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxenctrl import PAGE_SIZE, Control, ForeignMemory, Privcmd, Protection, ResourceKind, is_privcmd

from .conftest import gone_at_the_end
from .puppet import GRANT_FRAMES, PERMIT, Puppet

READ, BOTH = Protection.READ, Protection.READ | Protection.WRITE
NO_DOMAIN = 0x7FEF
ROOM = 16  # pages of address space that the tests map into


@pytest.fixture
def foreign() -> Iterator[ForeignMemory]:
    with ForeignMemory() as foreign:
        yield foreign


@pytest.fixture
def privcmd() -> Iterator[Privcmd]:
    with Privcmd() as privcmd:
        yield privcmd


@pytest.fixture
def room() -> Iterator[int]:
    """The address of ROOM pages that are reserved."""
    space = mmap.mmap(-1, ROOM * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    holder = (ctypes.c_ubyte * len(space)).from_buffer(space)
    yield ctypes.addressof(holder)
    del holder
    space.close()  # takes with it what was mapped over it


def mapped(address: int) -> str:
    """What the kernel says is mapped at an address: protection and file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, protection, _, _, _, *name = line.split()
        start, end = (int(number, 16) for number in place.split("-"))
        if start <= address < end:
            return " ".join([protection, *name])
    return ""


def frames_of(puppet: Puppet, *pages: int) -> "array[int]":
    return array("Q", [puppet.frames[page] for page in pages])


def byte(address: int) -> int:
    return ctypes.c_ubyte.from_address(address).value


def test_frames_in_any_order(puppet: Puppet, foreign: ForeignMemory) -> None:
    puppet.memory[3 * PAGE_SIZE], puppet.memory[9 * PAGE_SIZE] = 3, 9
    with foreign.map(puppet.domid, frames_of(puppet, 9, 3), BOTH) as mapping:
        assert (byte(mapping.address), byte(mapping.address + PAGE_SIZE)) == (9, 3)
        ctypes.c_ubyte.from_address(mapping.address + 1).value = 99
        assert puppet.memory[9 * PAGE_SIZE + 1] == 99


def test_the_grant_table_is_a_resource(puppet: Puppet, foreign: ForeignMemory) -> None:
    puppet.grant(8, 5)
    size = foreign.resource_size(puppet.domid, ResourceKind.GRANT_TABLE, 0)
    assert size >= GRANT_FRAMES * PAGE_SIZE
    with foreign.map_resource(puppet.domid, ResourceKind.GRANT_TABLE, 0, 0, 1, READ) as table:
        assert table.size == PAGE_SIZE
        entry = ctypes.c_uint64.from_address(table.address + 8 * 8).value
        assert entry == PERMIT | puppet.frames[5] << 32


def test_resources_that_are_not_there(puppet: Puppet, foreign: ForeignMemory) -> None:
    for domid, kind, id, frame, code in [
        (NO_DOMAIN, ResourceKind.GRANT_TABLE, 0, 0, errno.ESRCH),
        (puppet.domid, ResourceKind.GRANT_TABLE, 7, 0, errno.EINVAL),
        (puppet.domid, ResourceKind.GRANT_TABLE, 0, 1 << 20, errno.EINVAL),
    ]:
        with pytest.raises(OSError, match=f"the resource grant_table {id} of domain {domid}") as e:
            foreign.map_resource(domid, kind, id, frame, 1, READ)
        assert e.value.errno == code
    with pytest.raises(OSError, match="cannot tell the size") as e:
        foreign.resource_size(NO_DOMAIN, ResourceKind.GRANT_TABLE, 0)
    assert e.value.errno == errno.ESRCH


def test_a_restricted_handle_reaches_one_domain_only(
    control: Control, puppet: Puppet, foreign: ForeignMemory
) -> None:
    with gone_at_the_end(control, Puppet(control, puppet.kind, 4)) as other:
        foreign.map(other.domid, frames_of(other, 0), READ).close()
        foreign.restrict(puppet.domid)
        foreign.restrict(puppet.domid)
        foreign.map(puppet.domid, frames_of(puppet, 0), READ).close()
        with pytest.raises(OSError) as e:
            foreign.map(other.domid, frames_of(other, 0), READ)
        assert e.value.errno == errno.EPERM
        with pytest.raises(OSError) as e:
            foreign.map_resource(other.domid, ResourceKind.GRANT_TABLE, 0, 0, 1, READ)
        assert e.value.errno == errno.EPERM
        with pytest.raises(OSError, match=f"to domain {other.domid}") as e:
            foreign.restrict(other.domid)
        assert e.value.errno == errno.EINVAL


def test_the_device_is_told_from_others(tmp_path: Path) -> None:
    with Privcmd() as privcmd, open("/dev/xen/privcmd", "r+b", buffering=0) as device:
        assert privcmd.own
        assert is_privcmd(device.fileno())
    for path in ("/dev/null", "/dev/xen/gntdev", tmp_path):
        fd = os.open(path, os.O_RDONLY)
        assert not is_privcmd(fd)
        os.close(fd)


def test_frames_are_mapped_where_the_caller_says(puppet: Puppet, privcmd: Privcmd, room: int) -> None:
    puppet.memory[2 * PAGE_SIZE], puppet.memory[7 * PAGE_SIZE] = 2, 7
    place = room + 4 * PAGE_SIZE
    assert privcmd.map(place, puppet.domid, frames_of(puppet, 7, 2), BOTH) == ()
    assert (byte(place), byte(place + PAGE_SIZE)) == (7, 2)
    ctypes.c_ubyte.from_address(place + 1).value = 77
    assert puppet.memory[7 * PAGE_SIZE + 1] == 77
    assert mapped(place) == "rw-s /dev/xen/privcmd"
    assert "privcmd" not in mapped(place - 1) + mapped(place + 2 * PAGE_SIZE)
    # Numbers in memory that cannot be written do as well.
    again = memoryview(frames_of(puppet, 2).tobytes()).cast("Q")
    assert privcmd.map(room, puppet.domid, again, READ) == ()
    assert (byte(room), mapped(room)) == (2, "r--s /dev/xen/privcmd")


def test_a_mapping_outlives_the_device(puppet: Puppet, room: int) -> None:
    puppet.memory[0] = 5
    with Privcmd() as privcmd:
        privcmd.map(room, puppet.domid, frames_of(puppet, 0), READ)
    assert byte(room) == 5
    with pytest.raises(OSError, match="closed") as e:
        privcmd.map(room, puppet.domid, frames_of(puppet, 0), READ)
    assert e.value.errno == errno.EBADF


def test_frames_that_are_not_there_are_told(puppet: Puppet, privcmd: Privcmd, room: int) -> None:
    puppet.memory[PAGE_SIZE] = 1
    frames = frames_of(puppet, 0, 1)
    frames.insert(1, 1 << 36)
    failed = privcmd.map(room, puppet.domid, frames, READ)
    code = {"pv": errno.EPERM, "hvm": errno.EINVAL}[puppet.kind.value]
    assert failed == ((1, code),)
    assert byte(room + 2 * PAGE_SIZE) == 1
    failed = privcmd.map(room, NO_DOMAIN, frames, READ)
    assert failed == tuple((index, errno.ESRCH) for index in range(3))


def test_frames_that_come_later_are_mapped_then(hvm: Puppet, privcmd: Privcmd, room: int) -> None:
    later = hvm.pages + 8
    frames = array("Q", [0, later, later + 1, 1, later + 3])
    hvm.memory[0], hvm.memory[PAGE_SIZE] = 10, 11
    failed = privcmd.map(room, hvm.domid, frames, BOTH)
    assert failed == tuple((index, errno.EINVAL) for index in (1, 2, 4))
    hvm.control.populate_physmap(hvm.domid, [later, later + 1])
    holes = [index for index, _ in failed]
    assert privcmd.retry(room, hvm.domid, frames, holes) == ((4, errno.EINVAL),)
    hvm.control.populate_physmap(hvm.domid, [later + 3])
    assert privcmd.retry(room, hvm.domid, frames, [4]) == ()
    for index in (1, 2, 4):
        ctypes.c_ubyte.from_address(room + index * PAGE_SIZE).value = index
    assert [byte(room + index * PAGE_SIZE) for index in range(5)] == [10, 1, 2, 11, 4]
    with pytest.raises(OSError, match="cannot map 1 frames") as e:
        privcmd.retry(room, hvm.domid, frames, [3])
    assert e.value.errno == errno.EINVAL, "it is mapped already"


def test_a_call_that_fails_leaves_the_place_reserved(puppet: Puppet, room: int) -> None:
    frames = frames_of(puppet, 0, 1)
    fd = os.open("/dev/xen/privcmd", os.O_RDONLY)
    with Privcmd(fd) as device:
        with pytest.raises(OSError) as e:
            device.map(room, puppet.domid, frames, BOTH)
        assert e.value.errno == errno.EACCES
        assert mapped(room) == mapped(room + PAGE_SIZE) == "---p"
    os.close(fd)
    with Privcmd() as device:
        device.map(room, puppet.domid, frames, READ)
        device.restrict(puppet.domid)
        with pytest.raises(OSError, match=f"cannot map 2 frames of domain {NO_DOMAIN}") as e:
            device.map(room, NO_DOMAIN, frames, READ)
        assert e.value.errno == errno.EPERM
        assert mapped(room) == mapped(room + PAGE_SIZE) == "---p"
        assert device.map(room, puppet.domid, frames, READ) == ()


def test_restricting_holds_for_whoever_has_the_descriptor(puppet: Puppet, room: int) -> None:
    fd = os.open("/dev/xen/privcmd", os.O_RDWR)
    with Privcmd(fd) as ours, Privcmd(fd) as theirs:
        assert not ours.own
        ours.restrict(puppet.domid)
        ours.restrict(puppet.domid)
        assert theirs.map(room, puppet.domid, frames_of(puppet, 0), READ) == ()
        with pytest.raises(PermissionError):
            theirs.map(room, NO_DOMAIN, frames_of(puppet, 0), READ)
        with pytest.raises(OSError, match="cannot restrict the descriptor to domain 1") as e:
            theirs.restrict(1)
        assert e.value.errno == errno.EINVAL
    os.fstat(fd)  # still the caller's
    os.close(fd)
