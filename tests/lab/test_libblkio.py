# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""vhost-blk driven by libblkio, a vhost-user driver of other authors, without a guest."""

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import blkio
from tests.lab.blkio import LIBBLKIO, Blkio
from tests.lab.daemons import Daemon, ours
from tests.lab.peers import met

DEED = "drives `vhost-blk`: read, write, flush, discard, write zeroes"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), met(LIBBLKIO, deed=DEED)]

DISK_BYTES = 32 << 20
BLOCK = 4096
DEPTH = 64


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return blkio.load()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(DISK_BYTES))
    return path


@pytest.fixture
def daemon(image: Path, work: Path, tmp_path: Path) -> Iterator[Daemon]:
    options = ("--blk-file", image, "--num-queues", "2")
    with ours("vhost-blk", *options, name="blk", work=work, logs=tmp_path) as daemon:
        yield daemon
        daemon.finish()


@pytest.fixture
def device(library: ctypes.CDLL, daemon: Daemon) -> Iterator[Blkio]:
    with Blkio(library, daemon.socket, 2 * DEPTH * BLOCK) as device:
        yield device


def succeed(device: Blkio, tokens: set[int]) -> None:
    """Waits for the requests `tokens`, which must all succeed."""
    done = device.complete(len(tokens))
    assert {completion.token for completion in done} == tokens
    assert [completion for completion in done if completion.result != 0] == []


def test_what_is_written_is_read_back_and_on_the_disk(device: Blkio, image: Path) -> None:
    assert device.capacity == DISK_BYTES
    data = random.Random(2).randbytes(5 * BLOCK)
    device.memory[: len(data)] = data
    device.write(3 * BLOCK, 0, len(data), token=1)
    succeed(device, {1})
    device.flush(token=2)
    succeed(device, {2})
    device.read(3 * BLOCK, DEPTH * BLOCK, len(data), token=3)
    succeed(device, {3})
    assert device.memory[DEPTH * BLOCK :][: len(data)] == data
    assert image.read_bytes()[3 * BLOCK :][: len(data)] == data


@met(LIBBLKIO, deed="drives `vhost-blk`: 64 requests in flight")
def test_many_requests_in_flight(device: Blkio, image: Path) -> None:
    chance, disk = random.Random(3), bytearray(image.read_bytes())
    for _ in range(20):
        places = chance.sample(range(DISK_BYTES // BLOCK), DEPTH)
        for slot, place in enumerate(places):
            data = chance.randbytes(BLOCK)
            device.memory[slot * BLOCK : (slot + 1) * BLOCK] = data
            disk[place * BLOCK : (place + 1) * BLOCK] = data
            device.write(place * BLOCK, slot * BLOCK, BLOCK, token=slot + 1)
        succeed(device, set(range(1, DEPTH + 1)))
        for slot, place in enumerate(places):
            device.read(place * BLOCK, (DEPTH + slot) * BLOCK, BLOCK, token=slot + 1)
        succeed(device, set(range(1, DEPTH + 1)))
        assert device.memory[DEPTH * BLOCK :] == device.memory[: DEPTH * BLOCK]
    device.flush(token=1)
    succeed(device, {1})
    assert image.read_bytes() == disk


def test_discard_and_write_zeroes_leave_zeroes(device: Blkio, image: Path) -> None:
    before = image.stat().st_blocks
    device.discard(8 << 20, 4 << 20, token=1)
    device.write_zeroes(16 << 20, 4 << 20, token=2)
    succeed(device, {1, 2})
    content = image.read_bytes()
    assert not any(content[8 << 20 : 12 << 20])
    assert not any(content[16 << 20 : 20 << 20])
    assert any(content[12 << 20 : 12 << 20 | BLOCK])
    assert before - image.stat().st_blocks >= (4 << 20) // 512


@met(LIBBLKIO, deed="drives `vhost-blk`: five clients, one after the other")
def test_one_client_after_the_other(library: ctypes.CDLL, daemon: Daemon) -> None:
    for number in range(1, 6):
        with Blkio(library, daemon.socket, BLOCK) as device:
            if number > 1:
                device.read(0, 0, BLOCK, token=1)
                succeed(device, {1})
                assert device.memory[0] == number - 1
            device.memory[:BLOCK] = bytes([number]) * BLOCK
            device.write(0, 0, BLOCK, token=2)
            succeed(device, {2})
