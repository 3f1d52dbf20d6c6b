# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The load generator against devices in a thread of this process."""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import vhost
from vhost.backend import Stop
from vhost.bench import Access, Workload
from vhost.bench import load as loads
from vhost.bench import python_load as python_loads
from vhost.bench.connection import LoadError, Run
from vhost.bench.load import Load
from vhost.bench.python_load import PythonLoad
from vhost.errors import LocalProtocolError

pytestmark = pytest.mark.usefixtures("unix_build", "no_leaks")

SECTORS = 2048
DISK = replace(Workload.of("blk"), size=1024)


@contextmanager
def serving(device: vhost.Device, tmp_path: Path) -> Iterator[str]:
    """The path of the socket of `device`."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, Stop() as stop:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(
            target=vhost.serve, args=(device,), kwargs={"sock": listener, "stop": stop}, name="device"
        )
        thread.start()
        try:
            yield path
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()


class Disk(vhost.Device):
    """A disk in which each sector begins with its number; keeps its requests."""

    name = "disk"
    device_id = 2
    offers_config = True

    def __init__(self) -> None:
        self.data = bytearray(SECTORS * 512)
        for sector in range(SECTORS):
            struct.pack_into("<Q", self.data, sector * 512, sector)
        self.requests: list[tuple[int, int]] = []
        self.stuck = 1 << 62

    def config(self) -> bytes:
        return struct.pack("<Q", SECTORS)

    def process(self, chain: vhost.Chain) -> None:
        kind, _, sector = struct.unpack("<IIQ", chain.read(16))
        self.requests.append((kind, sector))
        size = max(chain.readable - 16, chain.writable - 1)
        at = slice(sector * 512, sector * 512 + size)
        if kind:
            self.data[at] = chain.read()
            chain.write(b"\0")
        else:
            chain.write(bytes(self.data[at]) + b"\0")

    def handle(self, queue: vhost.Queue) -> float | None:
        return super().handle(queue) if len(self.requests) < self.stuck else None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Disk, str]]:
    device = Disk()
    with serving(device, tmp_path) as path:
        yield device, path


def check(run: Run, requests: int) -> None:
    """So many came back, all as they should."""
    assert (run.requests, run.faults, run.fault, run.lost) == (requests, 0, "", 0)
    assert run.seconds > 0
    assert 0 < run.p50 <= run.p99 <= run.p999 < 60e9


@pytest.mark.parametrize("poll", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 8, 9, 1000])
def test_so_many_requests_and_no_more(disk: tuple[Disk, str], poll: bool, limit: int) -> None:
    device, path = disk
    with Load(path, replace(DISK, access=Access.READ), 8, poll=poll, sample=1) as load:
        run = load.run(30, limit=limit)
    check(run, limit)
    assert run.sampled == limit
    assert run.bytes == 1024 * limit
    # From the first place on, and at the end of the disk from the beginning.
    assert device.requests == [(0, 2 * i % SECTORS) for i in range(limit)]


def test_runs_go_on_where_the_last_one_ended(disk: tuple[Disk, str]) -> None:
    device, path = disk
    with Load(path, replace(DISK, access=Access.READ), 3, poll=False) as load:
        for _ in range(4):
            check(load.run(30, limit=5), 5)
    assert [sector for _, sector in device.requests] == [2 * i for i in range(20)]


def test_random_places_are_all_over_the_disk(disk: tuple[Disk, str]) -> None:
    device, path = disk
    with Load(path, DISK, 8, poll=False, sample=1) as load:
        check(load.run(30, limit=2000), 2000)
    places = {sector for _, sector in device.requests}
    assert len(places) > 500
    assert all(sector % 2 == 0 and sector <= SECTORS - 2 for sector in places)
    assert min(places) < 100
    assert max(places) > SECTORS - 100


def test_time_ends_a_run_and_nothing_is_left_in_flight(disk: tuple[Disk, str]) -> None:
    device, path = disk
    with Load(path, DISK, 8, poll=False) as load:
        run = load.run(0.1)
        check(run, len(device.requests))
    assert 0.1 <= run.seconds < 5
    assert run.kicks > 0
    assert run.calls > 0


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("regions", [1, 8, 40])
def test_rings_and_memory_of_all_kinds(
    disk: tuple[Disk, str], indirect: bool, event_idx: bool, regions: int
) -> None:
    _, path = disk
    work = replace(DISK, indirect=indirect, event_idx=event_idx, regions=regions)
    with Load(path, work, 42, poll=False, sample=1) as load:
        check(load.run(30, limit=500), 500)


def test_writes_are_written_and_read_back(disk: tuple[Disk, str]) -> None:
    device, path = disk
    with Load(path, replace(DISK, access=Access.WRITE), 4, poll=False, sample=1) as load:
        check(load.run(30, limit=10), 10)
        assert {kind for kind, _ in device.requests} == {1}
        check(load.check_writes(), 16)
        check(load.run(30, limit=10), 10)
    assert struct.unpack_from("<Q", device.data, 512) == (1 ^ 1 << 63,)


class Refusing(Disk):
    """Keeps what is written with data of its own, and says that it has not."""

    name = "refusing"

    def process(self, chain: vhost.Chain) -> None:
        super().process(chain)
        kind, sector = self.requests[-1]
        if kind and self.data[sector * 512 + 7] & 0x80:
            chain.write_at(chain.writable - 1, b"\1")


def test_a_write_that_is_refused_is_found_whatever_is_read_back(tmp_path: Path) -> None:
    work = replace(DISK, access=Access.WRITE)
    with serving(Refusing(), tmp_path) as path, Load(path, work, 4, poll=False, sample=1) as load:
        check(load.run(30, limit=10), 10)
        wrong = load.check_writes()
    assert wrong.sampled == 16
    assert wrong.faults == 16
    assert wrong.fault.startswith("status 1 for sector ")


def test_data_in_the_wrong_place_is_found(disk: tuple[Disk, str]) -> None:
    device, path = disk
    struct.pack_into("<Q", device.data, 512 * 9, 10)
    with Load(path, replace(DISK, access=Access.READ), 4, poll=False, sample=1) as load:
        run = load.run(30, limit=8)
    assert (run.requests, run.faults, run.fault) == (8, 1, "sector 9 began with 0xa, not with its number")


@pytest.mark.parametrize("poll", [False, True])
def test_device_that_hangs(disk: tuple[Disk, str], poll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "HANG", 0.3)
    device, path = disk
    device.stuck = 50
    with (
        Load(path, DISK, 8, poll=poll) as load,
        pytest.raises(LoadError, match=r"nothing came back for 0.3 s, after \d+ requests"),
    ):
        load.run(30)


@pytest.mark.parametrize("poll", [False, True])
def test_requests_from_python(disk: tuple[Disk, str], poll: bool) -> None:
    device, path = disk
    with PythonLoad(path, replace(DISK, access=Access.READ, python=True), 8, poll=poll, sample=1) as load:
        run = load.run(30, limit=50)
        check(run, 50)
        assert (run.sampled, run.bytes) == (50, 50 * 1024)
    assert sorted(sector for _, sector in device.requests) == [2 * i for i in range(50)]


def test_python_finds_data_in_the_wrong_place(disk: tuple[Disk, str]) -> None:
    device, path = disk
    struct.pack_into("<Q", device.data, 512 * 8, 10)
    with PythonLoad(path, replace(DISK, access=Access.READ), 4, poll=False, sample=1) as load:
        run = load.run(30, limit=8)
    assert (run.requests, run.faults, run.fault) == (8, 1, "sector 8 began with 0xa, not with its number")


def test_device_that_hangs_under_python(disk: tuple[Disk, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_loads, "HANG", 0.3)
    device, path = disk
    device.stuck = 50
    with (
        PythonLoad(path, DISK, 8, poll=False) as load,
        pytest.raises(LoadError, match=r"nothing came back for 0.3 s, after \d+ requests"),
    ):
        load.run(30)


@pytest.mark.parametrize("packed", [False, True])
def test_several_regions_and_a_dirty_log(disk: tuple[Disk, str], packed: bool) -> None:
    work = replace(DISK, regions=5, dirty_log=True, packed=packed)
    with Load(disk[1], work, 10, poll=False, sample=1) as load:
        check(load.run(30, limit=500), 500)
        assert load.session.log is not None
        assert load.session.log.take()


def test_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disk, "config", lambda self: struct.pack("<Q", 1))
    with (
        serving(Disk(), tmp_path) as path,
        pytest.raises(LocalProtocolError, match="the disk is smaller than a request of 1024 bytes"),
    ):
        Load(path, DISK, 1, poll=False)


class Net(vhost.Device):
    """Takes frames and counts them, and sends one for each buffer it gets."""

    name = "net"
    device_id = 1
    num_queues = 2
    features = 1 << 15  # MRG_RXBUF, which a load does not want

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.acknowledged = 0

    def negotiated(self, features: int) -> None:
        self.acknowledged = features

    def handle(self, queue: vhost.Queue) -> None:
        for chain in queue:
            if queue.index == 1:
                self.frames.append(chain.read())
            else:
                chain.write(bytes(12) + bytes(range(20)))
            chain.push()


class Zeros(vhost.Device):
    """Says that it has filled what it left alone."""

    name = "zeros"
    device_id = 4

    def process(self, chain: vhost.Chain) -> None:
        chain.write(bytes(chain.writable))


def test_entropy_that_is_none(tmp_path: Path) -> None:
    with serving(Zeros(), tmp_path) as path:
        with Load(path, Workload.of("rng"), 4, poll=False, sample=1) as load:
            run = load.run(30, limit=20)
        assert (run.sampled, run.faults) == (20, 20)
        assert run.fault == "a buffer that was left as it had been"


def test_frames_sent(tmp_path: Path) -> None:
    device = Net()
    with serving(device, tmp_path) as path, Load(path, Workload.of("net"), 16, poll=True) as load:
        run = load.run(30, limit=100)
        check(run, 100)
        assert device.acknowledged & 0xFFFFFF == 0
    assert len(device.frames) == 100
    assert set(device.frames) == {bytes(12) + b"\xff" * 6 + b"\2\0\0\0\0\1\x88\xb5" + bytes(50)}
    assert run.bytes == 100 * 76


def test_frames_received(tmp_path: Path) -> None:
    work = replace(Workload.of("net"), access=Access.RECEIVE)
    with serving(Net(), tmp_path) as path, Load(path, work, 16, poll=False) as load:
        run = load.run(30, limit=100)
    check(run, 100)
    assert run.bytes == 100 * 32


def test_the_peer_is_this_process(disk: tuple[Disk, str]) -> None:
    with Load(disk[1], DISK, 1, poll=False) as load:
        assert load.peer() == os.getpid()
