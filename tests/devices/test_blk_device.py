# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The block device, on a queue in memory."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from vhost import Device
from vhost._core import lib
from vhost.devices.blk import Blk
from vhost.devices.blk_config import BlkConfig
from vhost.devices.disk import Disk, NullDisk
from vhost.devices.memory_disk import MemoryDisk
from vhost.errors import DeviceError
from vhost.virtio.blk import BlkFeature
from vhost.virtio.blk import BlkRequest as Request
from vhost.virtio.blk import BlkStatus as Status

from .rig import Rig

MakeRig = Callable[[Device], Rig]
SECTORS = 4096
ALL = ~0


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * (SECTORS * 2))
    return path


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


def status(answer: tuple[int, bytes]) -> Status:
    used, data = answer
    assert used == len(data)
    return Status(data[-1])


def negotiated(device: Blk, features: int = ALL) -> Blk:
    device.negotiated(features)
    return device


def test_write_and_read_back_in_odd_pieces(rig: MakeRig, image: Path) -> None:
    driver = rig(negotiated(Blk(image)))
    data = os.urandom(1024)
    split = header(Request.OUT, 5)
    assert status(driver.ask(split[:3], split[3:] + data[:100], data[100:], room=1)) is Status.OK
    assert image.read_bytes()[5 * 512 : 7 * 512] == data
    used, back = driver.ask(header(Request.IN, 5), room=(700, 324, 1))
    assert (used, back) == (1025, data + b"\0")


@pytest.mark.parametrize(
    ("kind", "sector", "sectors"),
    [
        (Request.IN, SECTORS, 1),
        (Request.IN, SECTORS - 1, 2),
        (Request.OUT, SECTORS, 1),
        (Request.OUT, 2**63, 1),
    ],
)
def test_transfer_beyond_the_end(rig: MakeRig, image: Path, kind: int, sector: int, sectors: int) -> None:
    before = image.read_bytes()
    driver = rig(negotiated(Blk(image)))
    data, room = (b"", 512 * sectors + 1) if kind == Request.IN else (b"x" * 512 * sectors, 1)
    assert status(driver.ask(header(kind, sector), *([data] if data else []), room=room)) is Status.IOERR
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("readable", "room"),
    [
        ((header(Request.IN),), 512),  # a data length that is no multiple of 512
        ((header(Request.OUT), b"x" * 511), 1),
        ((header(Request.IN), b"x" * 512), 513),
        ((header(Request.OUT), b"x" * 512), 513),
        ((header(Request.IN)[:15],), 513),
        ((), 1),
        ((header(Request.DISCARD),), 1),
        ((header(Request.DISCARD), segment(0, 8)[:15]), 1),
        ((header(Request.DISCARD), segment(0, 1) * 33), 1),
        ((header(Request.DISCARD), segment(SECTORS - 1, 2)), 1),
        ((header(Request.DISCARD), segment(2**64 - 1, 2)), 1),
        ((header(Request.DISCARD), segment(0, 8) + segment(0, 2**32 - 1)), 1),
        ((header(Request.WRITE_ZEROES), segment(0, 8) * 2), 1),
        ((header(Request.WRITE_ZEROES), segment(SECTORS, 1)), 1),
    ],
)
def test_malformed_requests_fail_and_change_nothing(
    rig: MakeRig, image: Path, readable: tuple[bytes, ...], room: int
) -> None:
    before = image.read_bytes()
    driver = rig(negotiated(Blk(image)))
    assert status(driver.ask(*readable, room=room)) is Status.IOERR
    assert image.read_bytes() == before
    assert status(driver.ask(header(Request.IN), room=513)) is Status.OK


def test_request_without_room_for_a_status_is_returned(rig: MakeRig, image: Path) -> None:
    driver = rig(negotiated(Blk(image)))
    assert driver.ask(header(Request.FLUSH)) == (0, b"")


def test_complaints_do_not_fill_the_log(rig: MakeRig, image: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver = rig(negotiated(Blk(image)))
    for _ in range(10):
        driver.ask(b"short", room=1)
    assert [r.getMessage() for r in caplog.records] == [
        "blk: request failed: a request with 5 bytes of header instead of 16"
    ]


@pytest.mark.parametrize("kind", [2, 10, 14, 16, 0xFFFFFFFF])
def test_unknown_requests_are_unsupported(rig: MakeRig, image: Path, kind: int) -> None:
    driver = rig(negotiated(Blk(image)))
    assert status(driver.ask(header(kind), room=21)) is Status.UNSUPP


@pytest.mark.parametrize(("serial", "expected"), [("", bytes(20)), ("disk-1", b"disk-1".ljust(20, b"\0"))])
def test_serial(rig: MakeRig, image: Path, serial: str, expected: bytes) -> None:
    driver = rig(negotiated(Blk(image, serial=serial)))
    assert driver.ask(header(Request.GET_ID), room=(20, 1)) == (21, expected + b"\0")
    assert driver.ask(header(Request.GET_ID), room=5)[1] == expected[:4] + b"\0"


@pytest.mark.parametrize("features", [ALL, 0])
def test_discard(rig: MakeRig, image: Path, features: int) -> None:
    device = negotiated(Blk(image), features)
    if BlkFeature.DISCARD not in BlkFeature(device.features):
        pytest.skip("this file system cannot punch holes")
    driver = rig(device)
    before, blocks = image.read_bytes(), image.stat().st_blocks
    request = segment(0, 1024), segment(2048, 0), segment(2048, 1024)
    assert status(driver.ask(header(Request.DISCARD), *request, room=1)) is Status.OK
    assert image.stat().st_blocks <= blocks - 2048
    assert (
        image.read_bytes() == bytes(1 << 19) + before[1 << 19 : 1 << 20] + bytes(1 << 19) + before[3 << 19 :]
    )


@pytest.mark.parametrize("flags", [0, 1])
def test_write_zeroes(rig: MakeRig, image: Path, flags: int) -> None:
    driver = rig(negotiated(Blk(image)))
    before = image.read_bytes()
    assert status(driver.ask(header(Request.WRITE_ZEROES), segment(1, 3, flags), room=1)) is Status.OK
    assert image.read_bytes() == before[:512] + bytes(3 * 512) + before[2048:]


@pytest.mark.parametrize(("kind", "flags"), [(Request.DISCARD, 0), (Request.WRITE_ZEROES, 1)])
@pytest.mark.parametrize("memory", [False, True], ids=["image", "memory"])
def test_ranges_up_to_the_end_of_the_disk(
    rig: MakeRig, tmp_path: Path, kind: int, flags: int, memory: bool
) -> None:
    path, size = tmp_path / "large.img", 40 << 30
    path.touch()
    os.truncate(path, size)
    driver = rig(negotiated(Blk(MemoryDisk(size) if memory else path)))
    places = 0, 3, (size >> 9) - 1
    for sector in places:
        assert status(driver.ask(header(Request.OUT, sector), b"x" * 512, room=1)) is Status.OK
    whole = segment(2, (size >> 9) - 2, flags)
    assert status(driver.ask(header(kind), segment(2, (size >> 9) - 1, flags), room=1)) is Status.IOERR
    assert status(driver.ask(header(kind), whole, room=1)) is Status.OK
    left = [driver.ask(header(Request.IN, sector), room=513)[1][:512] for sector in places]
    assert left == [b"x" * 512, bytes(512), bytes(512)]


@pytest.mark.parametrize(("features", "flushes"), [(ALL, 0), (0, 1)])
@pytest.mark.parametrize("kind", [Request.DISCARD, Request.WRITE_ZEROES])
def test_clearing_goes_through_too(
    rig: MakeRig, image: Path, monkeypatch: pytest.MonkeyPatch, kind: int, features: int, flushes: int
) -> None:
    device = negotiated(Blk(image), features)
    calls: list[None] = []
    monkeypatch.setattr(device._disk, "flush", lambda: calls.append(None))
    driver = rig(device)
    assert status(driver.ask(header(kind), segment(0, 8), room=1)) is Status.OK
    assert len(calls) == flushes


@pytest.mark.parametrize(
    ("kind", "flags"),
    [(Request.DISCARD, 1), (Request.DISCARD, 2), (Request.WRITE_ZEROES, 2), (Request.WRITE_ZEROES, 3)],
)
def test_unknown_flags_are_unsupported(rig: MakeRig, image: Path, kind: int, flags: int) -> None:
    driver = rig(negotiated(Blk(image)))
    before = image.read_bytes()
    assert status(driver.ask(header(kind), segment(0, 8, flags), room=1)) is Status.UNSUPP
    assert image.read_bytes() == before


def test_read_only(rig: MakeRig, image: Path) -> None:
    before = image.read_bytes()
    driver = rig(negotiated(Blk(image, read_only=True)))
    offered = BlkFeature(driver.device.features)
    assert BlkFeature.RO in offered
    assert not offered & (BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES)
    assert status(driver.ask(header(Request.OUT), b"x" * 512, room=1)) is Status.IOERR
    for kind in (Request.DISCARD, Request.WRITE_ZEROES):
        assert status(driver.ask(header(kind), segment(0, 8), room=1)) is Status.UNSUPP
    assert status(driver.ask(header(Request.FLUSH), room=1)) is Status.OK
    assert driver.ask(header(Request.IN, 1), room=513)[1] == before[512:1024] + b"\0"
    assert image.read_bytes() == before


def test_large_batch_mixes_paths(rig: MakeRig, image: Path) -> None:
    driver = rig(negotiated(Blk(image, serial="S")))
    before = image.read_bytes()
    for i in range(60):
        if i % 3 == 0:
            driver.offer(header(Request.IN, i), room=513)
        elif i % 3 == 1:
            driver.offer(header(Request.FLUSH), room=1)
        else:
            driver.offer(header(99), room=1)
    driver.serve()
    answers = driver.answers()
    assert len(answers) == 60
    for i, answer in enumerate(answers):
        if i % 3 == 0:
            assert answer[1] == before[i * 512 : (i + 1) * 512] + b"\0"
        else:
            assert answer == (1, bytes([Status.OK if i % 3 == 1 else Status.UNSUPP]))


def writes_through(device: Blk) -> bool:
    return bool(device._core.flags & lib.VH_BLK_WRITE_THROUGH)


def test_writes_go_through_unless_the_driver_can_flush(image: Path) -> None:
    device = Blk(image)
    assert writes_through(device)
    device.negotiated(ALL)
    assert not writes_through(device)
    device.negotiated(ALL & ~BlkFeature.FLUSH)
    assert writes_through(device)
    assert device.config()[32] == 0
    device.close()


def test_driver_chooses_the_cache_mode(image: Path) -> None:
    device = negotiated(Blk(image))
    assert device.config()[32] == 1
    device.set_config(32, b"\0")
    assert writes_through(device)
    assert device.config()[32] == 0
    whole = bytearray(device.config())
    whole[32] = 1
    device.set_config(0, bytes(whole))
    assert not writes_through(device)
    with pytest.raises(DeviceError, match="writes capacity, seg_max, which it may only read"):
        device.set_config(0, bytes(20) + bytes(whole)[20:32] + b"\0" + bytes(whole)[33:])
    assert device.config() == bytes(whole)
    device.set_config(32, b"\0")
    device.reset()
    assert device.config()[32] == 0  # as the front-end's copy says
    device.negotiated(ALL)
    assert writes_through(device)
    device.disconnected()
    assert device.config()[32] == 1
    device.close()


def test_cache_mode_chosen_without_flush_holds_for_the_next_driver(image: Path) -> None:
    device = negotiated(Blk(image), ALL & ~BlkFeature.FLUSH)
    device.set_config(32, b"\0")
    device.reset()
    device.negotiated(ALL)
    assert (device.config()[32], writes_through(device)) == (0, True)
    device.set_config(32, b"\1")
    assert (device.config()[32], writes_through(device)) == (1, False)
    device.close()


def test_config_writes_that_are_refused(image: Path) -> None:
    device = negotiated(Blk(image))
    with pytest.raises(DeviceError, match="writeback to 2"):
        device.set_config(32, b"\2")
    with pytest.raises(DeviceError, match="1 bytes at 96 reach beyond 96"):
        device.set_config(96, b"\0")
    device.negotiated(ALL & ~BlkFeature.CONFIG_WCE)
    device.set_config(32, b"\1")
    with pytest.raises(DeviceError, match="did not negotiate CONFIG_WCE"):
        device.set_config(32, b"\0")
    device.close()


def test_config_space(image: Path) -> None:
    device = Blk(image, num_queues=4)
    config = device.config()
    assert len(config) == 96
    capacity, size_max, seg_max = struct.unpack_from("<QII", config)
    assert (capacity, size_max, seg_max) == (SECTORS, 0, 126)
    assert device.max_chain == seg_max + 2
    blk_size, exponent, align, io_min, io_best = struct.unpack_from("<IBBHI", config, 20)
    assert (blk_size, align, io_best) == (512, 0, 0)
    assert blk_size << exponent == io_min * blk_size == image.stat().st_blksize
    assert struct.unpack_from("<BxH", config, 32) == (1, 4)
    assert struct.unpack_from("<II", config, 48) == (65536, 1)
    assert config[57:] == bytes(39)
    device.close()


def test_config_space_of_a_disk_with_large_blocks() -> None:
    disk = Disk.__new__(Disk)
    disk.size, disk.read_only, disk.can_discard = 1 << 30, False, True
    disk.block_size, disk.physical_size, disk.io_min, disk.io_best = 4096, 16384, 1 << 30, 1 << 20
    config = BlkConfig(disk, 10, 3)
    assert BlkFeature.MQ in config.features()
    packed = config.pack(writeback=False)
    assert struct.unpack_from("<IBBHI", packed, 20) == (4096, 2, 0, 65535, 256)
    assert struct.unpack_from("<BxH5IB", packed, 32) == (0, 3, 1 << 21, 32, 32, 65536, 1, 1)


def test_features(image: Path) -> None:
    one, many = Blk(image), Blk(NullDisk(1 << 20), num_queues=2)
    expected = BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE | BlkFeature.TOPOLOGY | BlkFeature.FLUSH
    expected |= BlkFeature.CONFIG_WCE | BlkFeature.WRITE_ZEROES
    assert BlkFeature(one.features) & ~BlkFeature.DISCARD == expected
    assert many.features == one.features | BlkFeature.MQ | BlkFeature.DISCARD
    one.close()
    many.close()


@pytest.mark.parametrize("serial", ["x" * 21, "tüt"])
def test_serial_that_does_not_fit(image: Path, serial: str) -> None:
    with pytest.raises(DeviceError, match="20 ASCII characters"):
        Blk(image, serial=serial)


@pytest.mark.parametrize("queues", [0, 257])
def test_number_of_queues_out_of_range(image: Path, queues: int) -> None:
    with pytest.raises(DeviceError, match=f"{queues} queues"):
        Blk(image, num_queues=queues)
