# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Our frontend drives QEMU's storage daemon, a vhost-user backend of other authors."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.daemons import STORAGE_DAEMON, Daemon, storage_daemon
from tests.lab.peers import met
from vhost.frontend import Blk, Frontend, connect

DEED = "serves our front-end: random requests, zeroes, stop and start"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), met(STORAGE_DAEMON, deed=DEED)]

DISK_BYTES = 16 << 20
SECTOR = 512
QUEUES = 2
MODES = [(True, True), (True, False), (False, True), (False, False)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(DISK_BYTES))
    return path


@pytest.fixture
def daemon(image: Path, work: Path, tmp_path: Path) -> Iterator[Daemon]:
    with storage_daemon(image, queues=QUEUES, work=work, logs=tmp_path) as daemon:
        yield daemon
        assert daemon.stop() == 0, daemon.tail()
        assert daemon.output() == ""


@pytest.fixture(params=MODES, ids=lambda mode: f"event_idx={mode[0]}-indirect={mode[1]}")
def frontend(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Frontend]:
    event_idx, indirect = request.param
    with connect(daemon.socket, queues=QUEUES, event_idx=event_idx, indirect=indirect) as frontend:
        yield frontend


def pieces(chance: random.Random, number: int) -> Iterator[tuple[int, int]]:
    """Places on the disk that do not overlap: offset and size, 1 to 64 sectors each."""
    share = DISK_BYTES // number // SECTOR
    for index in chance.sample(range(number), number):
        size = chance.randint(1, min(64, share))
        yield (index * share + chance.randint(0, share - size)) * SECTOR, size * SECTOR


@pytest.mark.parametrize("depth", [1, 64])
def test_random_writes_are_read_back_and_on_the_disk(frontend: Frontend, image: Path, depth: int) -> None:
    chance, disk = random.Random(depth), bytearray(image.read_bytes())
    devices = [Blk(frontend, queue=queue) for queue in range(QUEUES)]
    assert devices[0].capacity == DISK_BYTES
    for turn in range(256 // depth):
        device = devices[turn % QUEUES]
        places = list(pieces(chance, depth))
        for offset, size in places:
            data = chance.randbytes(size)
            disk[offset : offset + size] = data
            device.submit_write(offset, data)
        assert [answer for _, answer in device.drain()] == [b""] * depth
        reads = {device.submit_read(offset, size): (offset, size) for offset, size in places}
        for token, data in device.drain():
            offset, size = reads.pop(token)
            assert data == disk[offset : offset + size]
        assert reads == {}
    devices[0].flush()
    assert image.read_bytes() == disk


def test_discard_and_write_zeroes_leave_zeroes(frontend: Frontend, image: Path) -> None:
    before, device = image.stat().st_blocks, Blk(frontend)
    device.discard(4 << 20, 2 << 20)
    device.write_zeroes(8 << 20, 2 << 20)
    device.flush()
    assert device.read(8 << 20, 2 << 20) == bytes(2 << 20)
    content = image.read_bytes()
    assert not any(content[4 << 20 : 6 << 20])
    assert not any(content[8 << 20 : 10 << 20])
    assert before - image.stat().st_blocks >= (2 << 20) // SECTOR


def test_a_queue_goes_on_where_it_stopped(frontend: Frontend) -> None:
    device = Blk(frontend)
    for round_ in range(5):
        data = bytes([round_]) * 4096
        device.write(0, data)
        base = frontend.stop(0)
        frontend.start(0, base)
        assert device.read(0, 4096) == data


def test_the_disk_has_an_end(frontend: Frontend) -> None:
    device = Blk(frontend)
    with pytest.raises(OSError, match="IOERR"):
        device.write(DISK_BYTES, bytes(SECTOR))
    with pytest.raises(OSError, match="IOERR"):
        device.read(DISK_BYTES - SECTOR, 2 * SECTOR)
    assert len(device.read(DISK_BYTES - SECTOR, SECTOR)) == SECTOR
