# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Mapping files as guest memory: what is mapped, what is refused, how long it stays mapped."""

import errno
import gc
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from vhost._core import ffi
from vhost.errors import GuestMemoryError, UnmappedError
from vhost.mem import GuestMemory, Memory, RegionSpec

HUGE = 2 << 20
USER = 0x7F00_0000_0000


def spec(gpa: int, size: int, offset: int = 0) -> RegionSpec:
    return RegionSpec(gpa, size, USER + gpa, offset)


def memfd(size: int, name: str = "guest") -> int:
    fd = os.memfd_create(name)
    os.ftruncate(fd, size)
    return fd


@pytest.fixture(autouse=True)
def _leaks(no_leaks: None) -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def ram() -> Iterator[int]:
    """A file of 64 KiB to look at guest memory from the other side."""
    fd = memfd(0x10000)
    yield fd
    os.close(fd)


@pytest.fixture
def memory(ram: int) -> Iterator[GuestMemory]:
    """Guest memory 0x1000 to 0x11000, which is the file ``ram``."""
    memory = Memory()
    memory.replace([(spec(0x1000, 0x10000), os.dup(ram))])
    yield memory
    memory.clear()


def test_both_sides_see_the_same_bytes(memory: GuestMemory, ram: int) -> None:
    os.pwrite(ram, b"guest", 0x234)
    with memory.access(0x1234, 5) as view:
        assert bytes(view) == b"guest"
        with pytest.raises(TypeError):
            view[0] = 1  # not asked for writing
    with memory.access(0x10FFC, 4, write=True) as view:
        view[:] = b"host"
    assert os.pread(ram, 4, 0xFFFC) == b"host"


def test_a_view_ends_with_its_block(memory: GuestMemory) -> None:
    with memory.access(0x1000, 8) as view:
        pass
    with pytest.raises(ValueError, match="released"):
        view[0]
    with memory.spans(0x1000, 8) as views:
        pass
    with pytest.raises(ValueError, match="released"):
        views[0][0]


def test_empty_ranges_are_empty_views(memory: GuestMemory) -> None:
    with memory.access(0x1000, 0, write=True) as view:
        assert len(view) == 0
    with pytest.raises(UnmappedError):
        memory.access(0x11000, 0)


@pytest.mark.parametrize("offset", [0, 1, 0x234, 4096, 4097, HUGE + 12])
@pytest.mark.parametrize("size", [1, 4095, 4096, 0x3001, HUGE, 2 * HUGE + 1])
def test_any_offset_and_size_can_be_mapped(offset: int, size: int) -> None:
    fd = memfd(offset + size)
    os.pwrite(fd, b"A", offset)
    os.pwrite(fd, b"Z", offset + size - 1)
    memory = Memory()
    memory.replace([(spec(0x1000, size, offset), fd)])
    with memory.access(0x1000, size) as view:
        assert view[size - 1 :] == b"Z"
        assert size == 1 or view[0] == ord("A")
    address = memory.table.regions[0].address
    assert memory.table.cdata.region[0].host == ffi.cast("uint8_t *", address)
    assert memory.ring(0x1000, size).address == address
    # Where the kernel can use huge pages, address and offset agree.
    if size >= HUGE:
        assert address % HUGE == offset % HUGE


def test_regions_for_huge_pages_are_aligned_as_they_come_and_go() -> None:
    memory = Memory()
    specs = [spec(i * 8 * HUGE, (2 + i % 3) * HUGE + i % 2 * 4096, i * 4096) for i in range(24)]
    for one in specs:
        memory.add(one, memfd(8 * HUGE))
    for one in specs[::2]:
        memory.remove(one)
    for one in specs[::4]:
        memory.add(one, memfd(8 * HUGE))
    ranges = sorted((region.address, region.address + region.spec.size) for region in memory.table.regions)
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    for region in memory.table.regions:
        assert region.address % HUGE == region.spec.offset % HUGE
        with memory.access(region.spec.guest_end - 1, 1, write=True) as view:
            view[0] = 1


def test_no_address_space_is_lost() -> None:
    def total() -> int:
        lines = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
        return sum(int(end, 16) - int(start, 16) for start, end in lines)

    memory = Memory()
    before = total()
    for _ in range(40):
        memory.replace([(spec(0, 3 * HUGE), memfd(4 * HUGE))])
        memory.clear()
    assert total() - before < 10 * HUGE  # the interpreter's own arenas move


def test_huge_page_files_are_mapped_in_huge_pages(mappings: Callable[..., list[str]]) -> None:
    fd = os.memfd_create("guest", os.MFD_HUGETLB)
    page = os.fstat(fd).st_blksize
    os.ftruncate(fd, 2 * page)
    memory = Memory()
    try:
        # No page of it is touched, so this needs none reserved.
        memory.replace([(spec(0, page // 2, page + 4096), fd)])
    except OSError as error:
        pytest.skip(f"no huge pages here: {error}")
    start, end = (int(number, 16) for number in mappings()[0].split()[0].split("-"))
    assert (start % page, end - start) == (0, page)
    assert memory.table.regions[0].address == start + 4096
    memory.clear()


def test_ordinary_files_are_mapped_no_further_than_needed(
    memory: GuestMemory, mappings: Callable[..., list[str]]
) -> None:
    (line,) = mappings()
    start, end = (int(number, 16) for number in line.split()[0].split("-"))
    assert end - start == 0x10000
    assert line.split()[1] == "rw-s"


def test_core_dumps_leave_guest_memory_out(memory: GuestMemory) -> None:
    text = Path("/proc/self/smaps").read_text()
    flags = text[text.index("/memfd:guest") :].partition("VmFlags:")[2].partition("\n")[0]
    assert "dd" in flags.split()


def test_a_read_only_file_is_mapped_read_only(tmp_path: Path, mappings: Callable[..., list[str]]) -> None:
    path = tmp_path / "rom"
    path.write_bytes(b"firmware" * 512)
    memory = Memory()
    memory.replace([(spec(0, 4096), os.open(path, os.O_RDONLY))])
    assert mappings(str(path))[0].split()[1] == "r--s"
    assert memory.table.cdata.region[0].writable == 0
    with memory.access(0, 8) as view:
        assert bytes(view) == b"firmware"
    for use in (memory.access, memory.spans):
        with pytest.raises(GuestMemoryError, match="read-only"):
            use(0, 8, write=True)
    with pytest.raises(GuestMemoryError, match="read-only"):
        memory.ring(0, 8)


def test_a_short_file_is_refused(ram: int) -> None:
    memory = Memory()
    for offset, size in ((0, 0x10001), (0x10000, 1), (1, 0x10000), (1 << 62, 1)):
        with pytest.raises(GuestMemoryError, match="which has only 0x10000 bytes"):
            memory.replace([(spec(0, size, offset), os.dup(ram))])


@pytest.mark.parametrize(
    ("region", "complaint"),
    [
        (RegionSpec(0, 4096, 0, xen_flags=1), "install vhost"),
        (RegionSpec(0, 4096, 0, domid=3), "install vhost"),
        (RegionSpec(0, 0, 0), "at least one byte"),
        (RegionSpec((1 << 64) - 1, 2, 0), "wraps"),
    ],
)
def test_refused_regions_leave_nothing_behind(region: RegionSpec, complaint: str, ram: int) -> None:
    memory = Memory()
    with pytest.raises(GuestMemoryError, match=complaint):
        memory.replace([(region, os.dup(ram))])
    with pytest.raises(GuestMemoryError, match=complaint):
        memory.add(region, os.dup(ram))
    assert memory.table.regions == ()


def test_a_region_without_descriptor_is_refused() -> None:
    with pytest.raises(GuestMemoryError, match="must come with the file descriptor"):
        Memory().replace([(spec(0, 4096), None)])


def test_a_descriptor_that_cannot_be_mapped_is_an_os_error() -> None:
    memory = Memory()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OSError, match="cannot map") as caught:
        memory.replace([(spec(0, 4096), os.dup(ours.fileno()))])
    assert caught.value.errno == errno.ENODEV


def test_sizes_beyond_the_address_space_are_an_error(tmp_path: Path) -> None:
    fd = os.open("/dev/zero", os.O_RDWR)  # no size of its own to be compared with
    with pytest.raises(OSError, match="cannot map"):
        Memory().replace([(RegionSpec(0, (1 << 63) - 4096, 0), fd)])
    fd = os.open("/dev/zero", os.O_RDWR)
    with pytest.raises(GuestMemoryError, match="beyond the end of any file"):
        Memory().replace([(RegionSpec(0, 1 << 63, 0, 1 << 62), fd)])


def test_replacing_is_all_or_nothing(
    memory: GuestMemory, mappings: Callable[..., list[str]], open_fds: Callable[[], Counter[str]]
) -> None:
    before, fds = memory.table, open_fds()
    with pytest.raises(GuestMemoryError) as caught:
        memory.replace([(spec(0, 4096), memfd(4096)), (spec(0x2000, 4096), memfd(4095))])
    assert memory.table is before
    assert open_fds() == fds
    assert len(mappings()) == 1, "also while the exception is held"
    assert "0xfff bytes" in str(caught.value)


def test_adding_and_removing(memory: GuestMemory, mappings: Callable[..., list[str]]) -> None:
    far = spec(0x100_0000, 0x2000)
    memory.add(far, memfd(0x2000))
    assert [region.spec for region in memory.table.regions] == [spec(0x1000, 0x10000), far]
    with pytest.raises(GuestMemoryError, match="overlap"):
        memory.add(spec(0x100_1000, 0x2000), memfd(0x2000))
    with pytest.raises(UnmappedError, match="no such region"):
        memory.remove(RegionSpec(far.guest_addr, far.size, far.user_addr + 4096))
    # What a front-end says about the file when it removes a region does not matter.
    memory.remove(RegionSpec(far.guest_addr, far.size, far.user_addr, 0x7000))
    assert len(mappings()) == 1
    with pytest.raises(UnmappedError):
        memory.remove(far)


def test_the_number_of_regions_is_limited() -> None:
    memory = Memory()
    fds = [(spec(i * 0x10000, 4096), memfd(4096)) for i in range(memory.max_regions)]
    memory.replace(fds)
    assert memory.table.cdata.n == 509
    with pytest.raises(GuestMemoryError, match="510 memory regions"):
        memory.add(spec(1 << 40, 4096), memfd(4096))
    assert memory.user_to_guest(USER + 508 * 0x10000 + 7, 8) == 508 * 0x10000 + 7


def test_spans_cross_regions_that_are_apart_here() -> None:
    memory = Memory()
    memory.replace([(spec(0, 4096), memfd(4096)), (spec(4096, 4096), memfd(4096))])
    with memory.spans(4094, 4, write=True) as views:
        assert [len(view) for view in views] == [2, 2]
        views[0][:], views[1][:] = b"ab", b"cd"
    with memory.access(4096, 2) as view:
        assert bytes(view) == b"cd"
    with pytest.raises(GuestMemoryError, match="spans"):
        memory.access(4094, 4)
    with pytest.raises(UnmappedError, match="nothing is mapped at 0x2000"):
        memory.spans(8190, 4)
    memory.clear()


@pytest.mark.parametrize("holder", ["access", "spans", "ring", "table", "cdata", "region"])
def test_memory_in_use_outlives_its_region(
    holder: str, memory: GuestMemory, ram: int, mappings: Callable[..., list[str]]
) -> None:
    uses: dict[str, Callable[[], object]] = {
        "access": lambda: memory.access(0x1000, 8),
        "spans": lambda: memory.spans(0x1000, 8),
        "ring": lambda: memory.ring(0x1000, 8),
        "table": lambda: memory.table,
        "cdata": lambda: memory.table.cdata,
        "region": lambda: memory.table.regions[0],
    }
    held: object = uses[holder]()
    memory.remove(spec(0x1000, 0x10000))
    assert len(mappings()) == 1
    del held
    assert mappings() == []


def test_closing_gives_memory_back_at_once(memory: GuestMemory, mappings: Callable[..., list[str]]) -> None:
    ring = memory.ring(0x1000, 8)
    access = memory.access(0x1000, 8)
    memory.clear()
    with access as view:
        view[0]
    assert len(mappings()) == 1
    ring.close()
    ring.close()
    assert mappings() == []
    with pytest.raises(GuestMemoryError, match="closed"):
        ring.address


def test_writes_after_removal_still_reach_the_file(memory: GuestMemory, ram: int) -> None:
    with memory.access(0x1000, 4, write=True) as view:
        memory.replace([(spec(0x1000, 4096), memfd(4096))])
        view[:] = b"late"
    assert os.pread(ram, 4, 0) == b"late"


def test_descriptors_are_not_kept(ram: int, open_fds: Callable[[], Counter[str]]) -> None:
    before = open_fds()
    memory = Memory()
    memory.replace([(spec(0, 4096), os.dup(ram)), (spec(4096, 4096), os.dup(ram))])
    memory.add(spec(8192, 4096), os.dup(ram))
    assert open_fds() == before


def test_regions_come_and_go_under_readers(mappings: Callable[..., list[str]]) -> None:
    memory = Memory()
    fixed, moving = spec(0, 4096), spec(0x10000, 4096)
    memory.replace([(fixed, memfd(4096))])
    failures: list[BaseException] = []
    done = threading.Event()
    seen = Counter[str]()

    def read() -> None:
        try:
            while not done.is_set():
                with memory.access(0, 4096, write=True) as view:
                    view[:] = bytes(4096)
                try:
                    with memory.access(0x10000, 4096, write=True) as view:
                        seen["there"] += 1
                        view[:] = bytes(4096)
                except UnmappedError:
                    seen["gone"] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # many more switches between the threads, and no 5 ms wait for each
    try:
        for thread in threads:
            thread.start()
        for _ in range(400):
            memory.add(moving, memfd(4096))
            memory.remove(moving)
        while seen["gone"] == 0:
            pass
        memory.add(moving, memfd(4096))
        while seen["there"] == 0:
            pass
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert failures == []
    memory.clear()
    assert mappings() == []
