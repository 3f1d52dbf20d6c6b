# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Images behind the block device: merging, shrinking, stable storage, requests in flight."""

import ctypes
import os
import resource
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vhost
from tests.frontend.served import served
from vhost import Device
from vhost._core import lib
from vhost.devices.blk import Blk
from vhost.devices.blk_path import UringPath
from vhost.devices.image import Image
from vhost.errors import DeviceError
from vhost.frontend import Blk as Client
from vhost.virtio.blk import BlkFeature
from vhost.virtio.blk import BlkRequest as Request
from vhost.virtio.blk import BlkStatus as Status
from vhost.virtqueue import Batch

from .blk_requests import IMAGES, SIZE, Backed, header, make, segment, status
from .rig import Rig

MakeRig = Callable[[Device], Rig]
WITH_CALLS = "sync", "uring"
PAGE = 4096


@pytest.fixture
def kinds(tmp_path: Path) -> Callable[[str], Backed]:
    return lambda kind: make(kind, tmp_path)


def device_of(driver: Rig) -> Blk:
    assert isinstance(driver.device, Blk)
    return driver.device


# ---- merging ----


@pytest.mark.parametrize("kind", WITH_CALLS)
@pytest.mark.parametrize("write", [False, True])
def test_adjacent_requests_are_one_operation(
    rig: MakeRig, kinds: Callable[[str], Backed], kind: str, write: bool
) -> None:
    backed = kinds(kind)
    driver = rig(backed.device())
    data = os.urandom(32 * PAGE)
    for i in range(32):
        part = data[i * PAGE : (i + 1) * PAGE]
        if write:
            driver.offer(header(Request.OUT, 8 * i), part[:100], part[100:], room=1)
        else:
            driver.offer(header(Request.IN, 8 * i), room=(100, PAGE - 100 + 1))
    driver.serve()
    answers = driver.answers()
    assert [status(answer) for answer in answers] == [Status.OK] * 32
    assert device_of(driver).statistics(0) == (32, 1)
    if write:
        assert backed.contents()[: len(data)] == data
    else:
        assert b"".join(answer[1][:-1] for answer in answers) == backed.initial[: 32 * PAGE]


@pytest.mark.parametrize("kind", WITH_CALLS)
@pytest.mark.parametrize(
    ("requests", "calls"),
    [
        ([(Request.IN, 0), (Request.IN, 2)], 2),  # a gap
        ([(Request.IN, 1), (Request.IN, 0)], 2),  # backwards
        ([(Request.IN, 0), (Request.OUT, 1)], 2),  # two directions
        (
            [(Request.OUT, 0), (Request.FLUSH, 0), (Request.OUT, 1)],
            3,
        ),  # a flush lies between; it is a call itself
        ([(Request.IN, 0), (Request.GET_ID, 0), (Request.IN, 1), (Request.IN, 9)], 2),
    ],
)
def test_other_requests_are_not(
    rig: MakeRig,
    kinds: Callable[[str], Backed],
    kind: str,
    requests: list[tuple[Request, int]],
    calls: int,
) -> None:
    driver = rig(kinds(kind).device())
    transfers = 0
    for what, sector in requests:
        transfers += what in (Request.IN, Request.OUT)
        out = [b"x" * 512] if what == Request.OUT else []
        driver.offer(header(what, sector), *out, room={Request.IN: 513, Request.GET_ID: 21}.get(what, 1))
    driver.serve()
    assert all(status(answer) is Status.OK for answer in driver.answers())
    assert device_of(driver).statistics(0) == (transfers, calls)


@pytest.mark.parametrize("kind", WITH_CALLS)
def test_an_operation_has_a_megabyte_of_several_requests(
    rig: MakeRig, kinds: Callable[[str], Backed], kind: str
) -> None:
    driver = rig(kinds(kind).device())
    for i in range(32):
        driver.offer(header(Request.IN, 128 * i), room=(65536, 1))
    driver.serve()
    assert all(status(answer) is Status.OK for answer in driver.answers())
    assert device_of(driver).statistics(0) == (32, 2)


@pytest.mark.parametrize(("piece", "calls"), [(512, 1), (256, 2)])
def test_pieces_of_a_block_are_not_for_the_kernel(
    rig: MakeRig, kinds: Callable[[str], Backed], piece: int, calls: int
) -> None:
    backed = kinds("sync")
    disk = backed.disk()
    disk.memory_align = 4  # as NVMe disks have it
    driver = rig(Blk(disk))
    size = 512 << 10  # two times what goes through aligned memory at once
    done, data = driver.ask(header(Request.IN), room=(piece, size - piece, 1))
    assert (done, data) == (size + 1, backed.initial[:size] + b"\0")
    assert device_of(driver).statistics(0) == (1, calls)


# ---- images that shrink, and disks that are full ----


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("used_before", [False, True])
def test_reads_of_an_image_that_became_shorter(
    rig: MakeRig, kinds: Callable[[str], Backed], kind: str, used_before: bool
) -> None:
    backed = kinds(kind)
    driver = rig(backed.device())
    if used_before:
        assert driver.ask(header(Request.IN, 40), room=513)[1] == backed.initial[40 * 512 : 41 * 512] + b"\0"
    os.truncate(backed.path, 36 * 512)
    for i in range(8):
        driver.offer(header(Request.IN, 8 * i), room=PAGE + 1)  # adjacent: the fifth is short by half
    driver.serve()
    answers = driver.answers()
    assert [status(answer) for answer in answers] == [Status.OK] * 4 + [Status.IOERR] * 4
    for i, (_, data) in enumerate(answers[:4]):
        assert data[:-1] == backed.initial[i * PAGE : (i + 1) * PAGE]
    # The image is what it was, and what it has can be read on.
    assert backed.path.stat().st_size == 36 * 512
    assert driver.ask(header(Request.IN, 35), room=513)[1] == backed.initial[35 * 512 : 36 * 512] + b"\0"


@pytest.mark.parametrize("kind", IMAGES)
def test_writes_to_an_image_that_became_shorter_arrive(
    rig: MakeRig, kinds: Callable[[str], Backed], kind: str
) -> None:
    backed = kinds(kind)
    driver = rig(backed.device())
    os.truncate(backed.path, 512)
    for i in range(4):
        driver.offer(header(Request.OUT, 100 + 50 * i), bytes([i + 1]) * 512, room=1)
    driver.serve()
    assert [status(answer) for answer in driver.answers()] == [Status.OK] * 4
    for i in range(4):
        at = (100 + 50 * i) * 512
        assert backed.contents()[at : at + 512] == bytes([i + 1]) * 512
    for i in range(4):
        assert (
            driver.ask(header(Request.IN, 100 + 50 * i), room=513)[1] == bytes([i + 1]) * 512 + b"\0"
        )  # as the driver sees it too


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("unmap", [0, 1])
def test_zeroes_in_an_image_that_became_shorter_can_be_read(
    rig: MakeRig, kinds: Callable[[str], Backed], kind: str, unmap: int
) -> None:
    backed = kinds(kind)
    driver = rig(backed.device())
    os.truncate(backed.path, 512)
    answer = driver.ask(header(Request.WRITE_ZEROES), segment(100, 8, unmap), room=1)
    assert status(answer) is Status.OK
    assert driver.ask(header(Request.IN, 100), room=PAGE + 1)[1] == bytes(PAGE) + b"\0"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A disk that is full beyond `size`, as far as system calls go; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", WITH_CALLS)
def test_only_what_could_not_be_written_fails(
    rig: MakeRig, kinds: Callable[[str], Backed], kind: str
) -> None:
    backed = kinds(kind)
    driver = rig(backed.device())
    for i in range(8):
        driver.offer(header(Request.OUT, 8 * i), bytes([i + 1]) * PAGE, room=1)
    with files_no_larger_than(5 * PAGE + 512):
        driver.serve()
    assert [status(answer) for answer in driver.answers()] == [Status.OK] * 5 + [Status.IOERR] * 3
    for i in range(5):
        assert backed.contents()[i * PAGE : (i + 1) * PAGE] == bytes([i + 1]) * PAGE
    assert backed.contents()[6 * PAGE :] == backed.initial[6 * PAGE :]


@pytest.mark.parametrize("kind", WITH_CALLS)
def test_each_request_has_its_own_status_after_a_failure(rig: MakeRig, kind: str, tmp_path: Path) -> None:
    backed = make(kind, tmp_path)
    device = backed.device()
    os.dup2(os.open(backed.path, os.O_RDONLY), device._core.fd)  # whatever is written fails now
    driver = rig(device)
    for i in range(3):
        driver.offer(header(Request.OUT, i), b"x" * 512, room=1)
    for i in range(3):
        driver.offer(header(Request.IN, i), room=513)
    driver.serve()
    answers = [status(answer) for answer in driver.answers()]
    assert answers == [Status.IOERR] * 3 + [Status.OK] * 3
    assert device.statistics(0) == (6, 5)  # one for three writes, then one for each; one for all reads


# ---- stable storage ----


def page_counts(path: Path) -> list[int]:
    """Pages of the file in the cache, dirty, being written: by cachestat(2) of Linux 6.5."""
    counts = (ctypes.c_uint64 * 5)()
    span = (ctypes.c_uint64 * 2)(0, 0)
    fd = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syscall(451, fd, span, counts, 0):
            pytest.skip(f"cachestat: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)
    return counts[:3]


def dirty_pages(path: Path) -> int:
    """Pages of the file in the cache that are not on the disk."""
    return sum(page_counts(path)[1:])


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    """A folder on a file system that has something to flush."""
    (tmp_path / "probe").write_bytes(b"x")
    if not dirty_pages(tmp_path / "probe"):
        pytest.skip("this file system has no dirty pages")
    return tmp_path


@pytest.mark.parametrize("kind", IMAGES)
def test_a_flush_covers_the_writes_before_it(rig: MakeRig, on_disk: Path, kind: str) -> None:
    backed = make(kind, on_disk)
    os.sync()
    driver = rig(backed.device())
    for i in range(10):
        assert status(driver.ask(header(Request.OUT, 8 * i), b"x" * PAGE, room=1)) is Status.OK
    if kind != "map":  # which the kernel notices later
        assert dirty_pages(backed.path) > 0
    assert status(driver.ask(header(Request.FLUSH), room=1)) is Status.OK
    assert dirty_pages(backed.path) == 0


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("how", ["no FLUSH", "writeback off"])
def test_writes_go_through_to_the_disk(rig: MakeRig, on_disk: Path, kind: str, how: str) -> None:
    backed = make(kind, on_disk)
    os.sync()
    device = backed.device(features=~BlkFeature.FLUSH if how == "no FLUSH" else ~0)
    if how == "writeback off":
        device.set_config(32, b"\0")
    driver = rig(device)
    for i in range(10):
        driver.offer(header(Request.OUT, 8 * i), b"x" * PAGE, room=1)
    driver.serve()
    assert [status(answer) for answer in driver.answers()] == [Status.OK] * 10
    assert dirty_pages(backed.path) == 0
    assert backed.contents()[: 10 * PAGE] == b"x" * 10 * PAGE


@pytest.mark.parametrize("kind", IMAGES)
def test_a_flush_that_fails_says_so(rig: MakeRig, kinds: Callable[[str], Backed], kind: str) -> None:
    device = kinds(kind).device()
    read, write = os.pipe()
    os.dup2(read, device._core.fd)  # cannot be flushed
    assert status(rig(device).ask(header(Request.FLUSH), room=1)) is Status.IOERR
    os.close(read)
    os.close(write)


# ---- past the page cache ----


def cached_pages(path: Path) -> int:
    """Pages of the file in the cache."""
    return page_counts(path)[0]


@pytest.mark.parametrize("kind", ["sync direct", "uring direct"])
@pytest.mark.parametrize("shift", [0, 8])
def test_direct_requests_leave_nothing_in_the_page_cache(
    rig: MakeRig, on_disk: Path, kind: str, shift: int
) -> None:
    backed = make(kind, on_disk)
    driver = rig(backed.device())
    fd = os.open(backed.path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert cached_pages(backed.path) == 0
    for i in range(10):
        driver._next = -(-driver._next // PAGE) * PAGE + shift  # where the data are to be
        at = driver._next
        driver.ram[at : at + PAGE] = bytes([i + 1]) * PAGE
        driver._next += PAGE
        first = driver._place(header(Request.OUT, 8 * i))
        last = driver._place(b"\xee")
        head = driver.driver.add([(first, 16), (at, PAGE)], [(last, 1)])
        driver._pending.append((head, [(last, 1)]))
        driver.driver.publish()
    driver.serve()
    assert [status(answer) for answer in driver.answers()] == [Status.OK] * 10
    assert cached_pages(backed.path) == 0
    calls = device_of(driver).statistics(0).calls
    assert calls == (1 if shift == 0 else 10)  # what is not aligned goes by itself, by way of memory of ours
    assert backed.contents()[: 10 * PAGE] == b"".join(bytes([i + 1]) * PAGE for i in range(10))


def test_disk_with_blocks_larger_than_a_sector(rig: MakeRig, kinds: Callable[[str], Backed]) -> None:
    backed = kinds("sync")
    disk = Image(backed.path, io="sync")
    disk.block_size = PAGE
    device = Blk(disk)
    driver = rig(device)
    assert struct.unpack_from("<I", device.config(), 20) == (PAGE,)
    assert status(driver.ask(header(Request.IN, 8), room=PAGE + 1)) is Status.OK
    for sector, size in ((8, 512), (9, PAGE), (2**61, PAGE)):
        assert status(driver.ask(header(Request.IN, sector), room=size + 1)) is Status.IOERR


def test_a_mapping_is_not_direct(kinds: Callable[[str], Backed]) -> None:
    with pytest.raises(DeviceError, match="exclude each other"):
        Image(kinds("map").path, io="map", direct=True)


# ---- in flight ----


@pytest.mark.usefixtures("unix_build")
@pytest.mark.parametrize("kind", [*IMAGES, "bounce"])
def test_cache_mode_that_changes_in_the_middle_of_a_write(on_disk: Path, kind: str) -> None:
    size = 32 << 20
    path = on_disk / "large.img"
    path.write_bytes(bytes(size))
    os.sync()
    for delay in (0, 0.001, 0.002, 0.003, 0.005):
        disk = Image(path, io="sync" if kind == "bounce" else kind)
        if kind == "bounce":
            disk.memory_align = PAGE  # which the data of a request are not
        device = Blk(disk)
        with served(device) as sock, vhost.connect(sock, ram_size=2 * size) as frontend:
            client = Client(frontend)
            written = client.submit_write(0, b"x" * size)
            time.sleep(delay)
            frontend.set_config(32, b"\0")
            client.wait(written)
        assert dirty_pages(path) == 0, f"{delay * 1000} ms into the write"
        device.close()


class Slow:
    """A disk whose reads wait until somebody writes to a pipe, and its path by hand."""

    def __init__(self, driver: Rig) -> None:
        self.driver = driver
        self.device = device_of(driver)
        read, self.write = os.pipe()
        os.dup2(read, self.device._core.fd)
        os.close(read)
        self._batches: list[Batch] = []
        # As few slots as there can be: 64.
        self._keep = UringPath(self.device._core, 1)
        self.path = self._keep.cdata

    def serve(self) -> int:
        """Chains left to Python."""
        self.batch = self.driver.queue.pop()
        self._batches.append(self.batch)  # alive until all their chains are done
        left: int = self.path.serve(self.path, self.driver.queue._q, self.batch.cdata)
        lib.vh_push(self.driver.queue._q, self.batch.cdata)
        return left

    def signalled(self, seconds: float = 0) -> bool:
        return bool(select.select([self.path.event_fd], [], [], seconds)[0])

    def reap(self) -> int:
        done: int = self.path.reap(self.path, self.driver.queue._q)
        return done


@pytest.fixture
def slow(rig: MakeRig, kinds: Callable[[str], Backed]) -> Iterator[Slow]:
    made = Slow(rig(kinds("uring").device()))
    yield made
    assert made.path.flying == 0
    made._keep.close()
    os.close(made.write)


def test_requests_in_flight_are_completed_when_they_are_ready(slow: Slow) -> None:
    slow.driver.offer(header(Request.IN, 10), room=513)
    slow.driver.offer(header(Request.GET_ID), room=21)
    assert slow.serve() == 0
    assert slow.path.flying == 1
    assert not slow.path.ready(slow.path)
    assert not slow.signalled()
    assert [answer[0] for answer in slow.driver.answers()] == [21]  # others do not wait for it
    os.write(slow.write, b"a" * 100)  # not all of it: it goes on waiting
    assert slow.signalled(10)
    assert slow.reap() == 0
    assert not slow.signalled()
    os.write(slow.write, b"b" * 412)
    assert slow.signalled(10)
    assert slow.path.ready(slow.path)
    assert slow.reap() == 1
    assert slow.path.flying == 0
    assert slow.driver.answers() == [(513, b"a" * 100 + b"b" * 412 + b"\0")]
    assert slow.path.idle == slow.batch.cdata
    assert not slow.signalled()


def test_what_completes_between_two_looks_is_signalled_once(slow: Slow) -> None:
    for sector in (1, 3, 5):
        slow.driver.offer(header(Request.IN, sector), room=513)
    slow.serve()
    for _ in range(3):
        assert slow.path.flying
        os.write(slow.write, b"c" * 512)
        assert slow.signalled(10)
        slow.reap()
    assert slow.path.flying == 0
    assert not slow.signalled()
    assert [status(answer) for answer in slow.driver.answers()] == [Status.OK] * 3


def test_nothing_is_in_flight_when_python_discards(slow: Slow) -> None:
    slow.driver.offer(header(Request.IN, 10), room=513)
    slow.driver.offer(header(Request.DISCARD), segment(0, 8), room=1)
    assert slow.serve() == 0  # it has a batch of its own, the next one
    assert slow.path.flying == 1
    later = threading.Timer(0.2, os.write, (slow.write, b"d" * 512))
    later.start()
    assert slow.serve() == 1
    assert slow.path.flying == 0
    later.join()
    assert slow.driver.answers() == [(513, b"d" * 512 + b"\0")]
    for chain in slow.batch.left():
        chain.done()
    slow.driver.queue.push_done(slow.batch)


def test_more_in_flight_than_there_are_slots(slow: Slow) -> None:
    for i in range(64):
        slow.driver.offer(header(Request.IN, 2 * i), room=513)
    slow.serve()
    assert slow.path.flying == 64
    for i in range(5):
        slow.driver.offer(header(Request.IN, 2 * i), room=513)
    later = threading.Timer(0.2, os.write, (slow.write, b"e" * 512 * 5))
    later.start()
    slow.serve()  # waits for as many to complete
    later.join()
    assert slow.path.flying == 64
    os.write(slow.write, b"f" * 512 * 64)
    while slow.path.flying:
        assert slow.signalled(10)
        slow.reap()
    assert [status(answer) for answer in slow.driver.answers()] == [Status.OK] * 69


def test_cache_mode_that_changes_under_a_write(rig: MakeRig, on_disk: Path) -> None:
    backed = make("uring", on_disk)
    os.sync()
    device = backed.device()
    driver = rig(device)
    path = device.path(driver.queue)
    driver.offer(header(Request.OUT, 0), b"x" * PAGE, room=1)
    batch = driver.queue.pop()
    # It is submitted for the cache, and the driver switches that off before it is completed.
    write = driver.queue._q
    path.serve(path, write, batch.cdata)
    device.set_config(32, b"\0")
    while path.flying:
        select.select([path.event_fd], [], [], 10)
        path.reap(path, write)
    driver.queue.push_done(batch)
    assert dirty_pages(backed.path) == 0


def test_a_path_that_is_closed_leaves_nothing_open(kinds: Callable[[str], Backed], rig: MakeRig) -> None:
    device = kinds("uring").device()
    driver = rig(device)

    def held() -> tuple[int, int]:
        mapped = Path("/proc/self/maps").read_text().count("io_uring")
        return len(list(Path("/proc/self/fd").iterdir())), mapped

    device.stop(0)
    before = held()
    for _ in range(20):
        device.path(driver.queue)
    device.stop(0)
    assert held() == before


def test_an_image_in_memory_is_mapped(rig: MakeRig) -> None:
    fd = os.memfd_create("disk")
    os.pwrite(fd, struct.pack("<Q", 7) * (SIZE // 8), 0)
    driver = rig(Blk(Image(f"/proc/self/fd/{fd}")))
    assert driver.ask(header(Request.IN, 9), room=513)[1] == struct.pack("<Q", 7) * 64 + b"\0"
    assert device_of(driver).statistics(0) == (1, 0)  # without a system call
    os.ftruncate(fd, 512)
    assert status(driver.ask(header(Request.IN, 9), room=513)) is Status.IOERR
    os.close(fd)
