# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The device without the device: what is told from it, and what is left when the kernel refuses."""

import ctypes
import errno
import mmap
import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxenctrl import PAGE_SIZE, Privcmd, Protection, is_privcmd
from pyxenctrl.privcmd import _BATCH, _DOMAIN, MMAPBATCH_V2, RESTRICT

READ = Protection.READ
PAGES = 4


def ioc(type: str, number: int, size: int) -> int:
    # _IOC of asm-generic/ioctl.h; privcmd's have no direction.
    return size << 16 | ord(type) << 8 | number


@pytest.fixture
def room() -> Iterator[int]:
    """The address of some pages that are ours."""
    space = mmap.mmap(-1, PAGES * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    holder = (ctypes.c_ubyte * len(space)).from_buffer(space)
    yield ctypes.addressof(holder)
    del holder
    space.close()


@pytest.fixture
def memfd() -> Iterator[int]:
    """A descriptor that can be mapped, but is not the device."""
    fd = os.memfd_create("not-privcmd")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    yield fd
    os.close(fd)


def mapped(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, protection, _, _, _, *name = line.split()
        start, end = (int(number, 16) for number in place.split("-"))
        if start <= address < end:
            return " ".join([protection, *name])
    return ""


def test_the_numbers_of_the_requests() -> None:
    assert ioc("P", 4, _BATCH.size) == MMAPBATCH_V2
    assert ioc("P", 6, _DOMAIN.size) == RESTRICT
    # struct privcmd_mmapbatch_v2: u32 at 0, u16 at 4, then 64 bits each.
    assert _BATCH.pack(1, 2, 3, 4, 5) == struct.pack("<IH2xQQQ", 1, 2, 3, 4, 5)


def test_what_is_not_the_device(tmp_path: Path) -> None:
    for path in (Path("/dev/null"), tmp_path):
        fd = os.open(path, os.O_RDONLY)
        assert not is_privcmd(fd)
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        is_privcmd(-1)
    assert caught.value.errno == errno.EBADF


def test_a_refused_call_leaves_the_place_reserved(room: int, memfd: int) -> None:
    frames = array("Q", [1, 2])
    with Privcmd(memfd) as device:
        assert not device.own
        with pytest.raises(OSError, match="cannot map 2 frames of domain 5 from frame 0x1 on: ") as caught:
            device.map(room, 5, frames, READ)
        assert caught.value.errno == errno.ENOTTY
        assert mapped(room) == mapped(room + PAGE_SIZE) == "---p"
        assert mapped(room + 2 * PAGE_SIZE).startswith("rw-p")
        with pytest.raises(OSError, match="cannot map 1 frames of domain 5 from frame 0x2 on"):
            device.retry(room, 5, frames, [1])
        with pytest.raises(OSError, match="cannot restrict the descriptor to domain 5") as caught:
            device.restrict(5)
        assert caught.value.errno == errno.ENOTTY
    os.fstat(memfd)


def test_a_descriptor_that_cannot_be_mapped(room: int) -> None:
    fd = os.open("/proc/self/maps", os.O_RDONLY)
    with (
        Privcmd(fd) as device,
        pytest.raises(OSError, match=f"cannot map 0x1000 bytes at {room:#x}") as caught,
    ):
        device.map(room, 5, array("Q", [1]), READ)
    assert caught.value.errno == errno.ENODEV
    assert mapped(room) == "---p"
    os.close(fd)


def test_frames_are_64_bits_each(room: int, memfd: int) -> None:
    with Privcmd(memfd) as device:
        with pytest.raises(TypeError, match="64 bits each"):
            device.map(room, 5, array("I", [1, 2]), READ)
        with pytest.raises(TypeError, match="next to each other"):
            device.map(room, 5, memoryview(array("Q", range(4)))[::2], READ)
        with pytest.raises(ValueError, match="no frames"):
            device.map(room, 5, array("Q"), READ)
        assert mapped(room).startswith("rw-p"), "nothing was tried"
