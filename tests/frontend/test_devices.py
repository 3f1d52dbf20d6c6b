# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The clients for block and entropy devices, on devices of ours and on one that fails."""

import errno
import random
import socket
import struct
from pathlib import Path

import pytest

import vhost
from tests.frontend.served import Reverse, served
from vhost._core import lib
from vhost.devices.blk import Blk as BlkDevice
from vhost.frontend import Blk, Frontend, Rng
from vhost.virtqueue import Chain

pytestmark = pytest.mark.usefixtures("no_leaks", "unix_build")

SIZE = 8 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(7).randbytes(SIZE))
    return path


def test_a_disk_from_end_to_end(image: Path) -> None:
    before = image.read_bytes()
    data = random.Random(8).randbytes(3 << 20)
    disk = BlkDevice(image, serial="disk-7")
    with served(disk) as sock, vhost.connect(sock) as frontend:
        blk = Blk(frontend)
        assert (blk.capacity, blk.block_size, blk.read_only) == (SIZE, 512, False)
        assert blk.serial() == "disk-7"
        assert blk.read(0, SIZE) == before
        blk.write(512, data)
        blk.flush()
        assert blk.read(512, len(data)) == data
        blk.write_zeroes(1024, 4096)
        blk.discard(SIZE - 65536, 65536)
        with pytest.raises(OSError, match=r"read of 512 bytes at 8388608.*IOERR") as beyond:
            blk.read(SIZE, 512)
        assert beyond.value.errno == errno.EIO
        assert blk.read(SIZE // 2, 512) == before[SIZE // 2 :][:512]
        assert blk.in_flight == 0
    disk.close()
    after = image.read_bytes()
    assert after[:512] == before[:512]
    assert after[1024 : 1024 + 4096] == bytes(4096)
    assert after[5120 : 512 + len(data)] == data[5120 - 512 :]


@pytest.mark.parametrize("depth", [1, 64])
def test_many_in_flight(image: Path, depth: int) -> None:
    block = 4096
    disk = BlkDevice(image)
    places = list(range(0, SIZE, block))
    random.Random(9).shuffle(places)
    with served(disk) as sock, vhost.connect(sock) as frontend:
        blk = Blk(frontend)
        for place in places:
            if blk.in_flight >= depth:
                next(blk.drain())
            blk.submit_write(place, struct.pack("<Q", place) * (block // 8))
        assert all(data == b"" for _, data in blk.drain())
        blk.wait(blk.submit_flush())
        expected: dict[int, bytes] = {}
        right = 0
        for place in places:
            if len(expected) == depth:
                token, data = next(blk.drain())
                right += data == expected.pop(token)
            expected[blk.submit_read(place, block)] = struct.pack("<Q", place) * (block // 8)
        for token, data in blk.drain():
            right += data == expected.pop(token)
        assert (right, expected) == (len(places), {})
    disk.close()
    content = image.read_bytes()
    assert all(content[place : place + 8] == struct.pack("<Q", place) for place in places)


def test_more_than_the_ring_and_memory_hold(image: Path) -> None:
    disk = BlkDevice(image)
    with served(disk) as sock, vhost.connect(sock, queue_size=4, ram_size=3 << 20) as frontend:
        blk = Blk(frontend)
        assert blk.read(0, SIZE) == image.read_bytes()
        tokens = [blk.submit_read(512 * n, 512) for n in range(50)]
        assert b"".join(map(blk.wait, tokens)) == image.read_bytes()[: 512 * 50]
    disk.close()


def test_read_only(image: Path) -> None:
    disk = BlkDevice(image, read_only=True)
    with served(disk) as sock, vhost.connect(sock) as frontend:
        blk = Blk(frontend)
        assert blk.read_only
        with pytest.raises(OSError, match="write of 512 bytes at 0"):
            blk.write(0, bytes(512))
        failing, fine = blk.submit_write(0, bytes(512)), blk.submit_read(0, 512)
        with pytest.raises(OSError, match="write of 512"):
            blk.wait(failing)
        assert [token for token, _ in blk.drain()] == [fine]
    disk.close()


@pytest.mark.parametrize(("offset", "n"), [(1, 512), (0, 511), (-512, 512)])
def test_sectors_only(image: Path, offset: int, n: int) -> None:
    disk = BlkDevice(image)
    with served(disk) as sock, vhost.connect(sock) as frontend:
        blk = Blk(frontend)
        with pytest.raises(ValueError, match=f"{n} bytes at {offset}"):
            blk.read(offset, n)
        with pytest.raises(ValueError, match="multiples of 512"):
            blk.write(offset, bytes(n))
    disk.close()


class Picky(vhost.Device):
    """A disk that takes two segments of 1024 bytes, and answers every status there is."""

    name = "picky"
    features = 1 << 1 | 1 << 2 | 1 << 13
    offers_config = True

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int, int]] = []
        self.status: bytes = b"\0"

    def config(self) -> bytes:
        return struct.pack("<QII", 1 << 20, 1024, 2).ljust(36, b"\0") + struct.pack("<III", 8, 1, 1)

    def process(self, chain: Chain) -> None:
        kind, _, sector = struct.unpack("<IIQ", chain.read(16))
        rest = chain.read()
        self.asked.append((kind, sector, len(rest), chain.writable - 1))
        if kind == 11:
            self.asked[-1] = (kind, *struct.unpack("<QII", rest))
        chain.write(bytes(chain.writable - 1) + self.status)


def test_limits_of_the_device_are_kept() -> None:
    picky = Picky()
    with served(picky) as sock, vhost.connect(sock) as frontend:
        blk = Blk(frontend)
        assert blk.read(0, 5120) == bytes(5120)
        blk.write(512, bytes(2560))
        assert picky.asked == [
            (0, 0, 0, 2048),
            (0, 4, 0, 2048),
            (0, 8, 0, 1024),
            (1, 1, 2048, 0),
            (1, 5, 512, 0),
        ]
        with pytest.raises(ValueError, match="at most 2048 bytes"):
            blk.submit_read(0, 2560)
        picky.asked.clear()
        blk.discard(512, 20 * 512)
        assert picky.asked == [(11, 1, 8, 0), (11, 9, 8, 0), (11, 17, 4, 0)]


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        (b"\1", errno.EIO, "1 (IOERR)"),
        (b"\2", errno.ENOTSUP, "2 (UNSUPP)"),
        (b"\7", errno.EIO, "7 (unknown)"),
        (b"", errno.EIO, "255 (none at all)"),
    ],
)
def test_every_status(status: bytes, code: int, word: str) -> None:
    picky = Picky()
    picky.status = status
    with served(picky) as sock, vhost.connect(sock) as frontend:
        with pytest.raises(OSError) as caught:
            Blk(frontend).flush()
        assert caught.value.errno == code
        assert str(caught.value).endswith(f"flush: the device answered with status {word}")


class Counting(vhost.Device):
    """Entropy by the numbers, at most 10 bytes a request; or none at all."""

    name = "counting"
    left = 1000

    def process(self, chain: Chain) -> None:
        n = min(10, self.left, chain.writable)
        chain.write(bytes(range(n)))
        self.left -= n


def test_entropy_in_pieces() -> None:
    with served(Counting()) as sock, vhost.connect(sock) as frontend:
        rng = Rng(frontend)
        assert rng.read(25) == bytes(range(10)) * 2 + bytes(range(5))
        assert rng.read(0) == b""


def test_entropy_runs_out() -> None:
    device = Counting()
    device.left = 15
    with served(device) as sock, vhost.connect(sock) as frontend:
        with pytest.raises(OSError, match="gave nothing, 15 of 16 bytes") as caught:
            Rng(frontend).read(16)
        assert caught.value.errno == errno.EIO


def test_a_device_that_is_no_disk(backend: socket.socket, device: Reverse) -> None:
    with (
        vhost.connect(backend, protocol_features=0) as frontend,
        pytest.raises(vhost.errors.LocalProtocolError),
    ):
        Blk(frontend)


def test_the_cache_mode_is_the_front_ends_until_it_goes(image: Path) -> None:
    disk = BlkDevice(image)

    def mode(frontend: Frontend) -> tuple[bytes, bool]:
        return frontend.config(32, 1), bool(disk._core.flags & lib.VH_BLK_WRITE_THROUGH)

    with served(disk) as sock, vhost.connect(sock) as frontend:
        assert mode(frontend) == (b"\1", False)
        frontend.set_config(32, b"\0")
        assert mode(frontend) == (b"\0", True)
        frontend.log_start()  # SET_FEATURES comes again
        assert mode(frontend) == (b"\0", True)
        frontend.log_stop()
        assert mode(frontend) == (b"\0", True)
        frontend.reset()
        assert mode(frontend) == (b"\0", True)
    with served(disk) as sock, vhost.connect(sock) as frontend:
        assert mode(frontend) == (b"\1", False)
    disk.close()
