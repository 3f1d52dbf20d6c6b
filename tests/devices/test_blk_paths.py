# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The data paths of the block device: the same requests to each, whatever shape a driver gives them."""

import os
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from vhost import Device
from vhost.devices.blk import Blk
from vhost.devices.disk import NullDisk
from vhost.errors import DeviceError
from vhost.virtio.blk import BlkFeature
from vhost.virtio.blk import BlkRequest as Request
from vhost.virtio.blk import BlkStatus as Status

from .blk_requests import KINDS, SECTORS, Backed, header, make, segment, status
from .rig import Rig

MakeRig = Callable[[Device], Rig]


@pytest.fixture(params=KINDS)
def backed(request: pytest.FixtureRequest, tmp_path: Path) -> Backed:
    return make(request.param, tmp_path)


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """The same bytes in pieces of random sizes."""
    places = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))})
    return [data[a:b] for a, b in pairwise(places)]


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_in_batches(rig: MakeRig, backed: Backed, seed: int) -> None:
    rng, model = random.Random(seed), bytearray(backed.initial)
    driver = rig(backed.device())
    for _ in range(20):
        batch: list[tuple[int, int, bool]] = []
        # In one batch no two requests touch the same sector, or their order would be anybody's guess.
        sector = rng.randrange(64)
        for _ in range(rng.randrange(1, 40)):
            sectors, write = rng.choice((0, 1, 1, 2, 8, 17)), rng.random() < 0.5
            if rng.random() < 0.4:
                sector += rng.randrange(64)
            batch.append((sector, sectors, write))
            sector += sectors
        rng.shuffle(batch) if rng.random() < 0.3 else None
        expected = []
        for sector, sectors, write in batch:
            at, n = sector * 512, sectors * 512
            if write:
                data = rng.randbytes(n)
                model[at : at + n] = data
                driver.offer(*cut(rng, header(Request.OUT, sector) + data), room=1)
                expected.append((1, b"\0"))
            else:
                room = tuple(len(part) for part in cut(rng, bytes(n + 1)))
                driver.offer(*cut(rng, header(Request.IN, sector)), room=room)
                expected.append((n + 1, bytes(model[at : at + n]) + b"\0"))
        driver.serve()
        assert driver.answers() == expected
    assert backed.contents() == model


@pytest.mark.parametrize(
    ("kind", "sector", "sectors"),
    [
        (Request.IN, SECTORS, 1),
        (Request.IN, SECTORS - 1, 2),
        (Request.IN, 2**55 - 1, 2),
        (Request.IN, 2**64 - 1, 1),
        (Request.OUT, SECTORS, 1),
        (Request.OUT, SECTORS - 1, 2),
        (Request.OUT, 2**63, 1),
    ],
)
def test_transfer_beyond_the_end(rig: MakeRig, backed: Backed, kind: int, sector: int, sectors: int) -> None:
    driver = rig(backed.device())
    data, room = (b"", 512 * sectors + 1) if kind == Request.IN else (b"x" * 512 * sectors, 1)
    assert status(driver.ask(header(kind, sector), *([data] if data else []), room=room)) is Status.IOERR
    assert backed.contents() == backed.initial


MALFORMED: list[tuple[tuple[bytes, ...], int | tuple[int, ...]]] = [
    ((header(Request.IN),), 512),  # a data length that is no multiple of 512
    ((header(Request.IN),), (512, 2)),
    ((header(Request.OUT), b"x" * 511), 1),
    ((header(Request.OUT) + b"x",), 1),
    ((header(Request.IN), b"x" * 512), 513),
    ((header(Request.OUT), b"x" * 512), 513),
    ((header(Request.IN)[:15],), 513),
    ((header(Request.IN)[:8], header(Request.IN)[8:15]), (512, 1)),
    ((), 1),
    ((), 513),
    ((header(Request.DISCARD),), 1),
    ((header(Request.WRITE_ZEROES), segment(SECTORS, 1)), 1),
]


@pytest.mark.parametrize(("readable", "room"), MALFORMED)
def test_malformed_requests_fail_and_change_nothing(
    rig: MakeRig, backed: Backed, readable: tuple[bytes, ...], room: int | tuple[int, ...]
) -> None:
    driver = rig(backed.device())
    assert status(driver.ask(*readable, room=room)) is Status.IOERR
    assert backed.contents() == backed.initial
    assert status(driver.ask(header(Request.IN), room=513)) is Status.OK


@pytest.mark.parametrize("readable", [(), (header(Request.OUT), b"x" * 512), (header(Request.FLUSH),)])
def test_requests_without_room_for_a_status_are_returned(
    rig: MakeRig, backed: Backed, readable: tuple[bytes, ...]
) -> None:
    driver = rig(backed.device())
    if readable:
        assert driver.ask(*readable) == (0, b"")
    assert backed.contents() == backed.initial
    assert driver.ask(header(Request.IN, 3), room=513)[1] == backed.initial[1536:2048] + b"\0"


def test_as_many_pieces_as_a_chain_may_have(rig: MakeRig, backed: Backed) -> None:
    driver = rig(backed.device())
    data = os.urandom(126 * 512)
    parts = [data[at : at + 512] for at in range(0, len(data), 512)]
    assert status(driver.ask(header(Request.OUT, 7), *parts, room=1)) is Status.OK
    assert driver.ask(header(Request.IN, 7), room=(512,) * 126 + (1,))[1] == data + b"\0"


def test_read_only(rig: MakeRig, backed: Backed) -> None:
    driver = rig(backed.device(read_only=True))
    offered = BlkFeature(driver.device.features)
    assert BlkFeature.RO in offered
    assert not offered & (BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES)
    assert status(driver.ask(header(Request.OUT), b"x" * 512, room=1)) is Status.IOERR
    for kind in (Request.DISCARD, Request.WRITE_ZEROES):
        assert status(driver.ask(header(kind), segment(0, 8), room=1)) is Status.UNSUPP
    assert status(driver.ask(header(Request.FLUSH), room=1)) is Status.OK
    assert driver.ask(header(Request.IN, 1), room=513)[1] == backed.initial[512:1024] + b"\0"
    assert backed.contents() == backed.initial


@pytest.mark.parametrize("features", [~0, 0])
def test_writes_of_either_cache_mode_arrive(rig: MakeRig, backed: Backed, features: int) -> None:
    driver = rig(backed.device(features=features))
    for sector in (1, 2, 9):
        driver.offer(header(Request.OUT, sector), bytes([sector]) * 512, room=1)
    driver.serve()
    assert [status(answer) for answer in driver.answers()] == [Status.OK] * 3
    assert backed.contents()[512:1536] == b"\1" * 512 + b"\2" * 512


@pytest.mark.parametrize("unmap", [0, 1])
@pytest.mark.parametrize(("sector", "sectors"), [(1, 3), (5, 27), (0, SECTORS)])
def test_write_zeroes(rig: MakeRig, backed: Backed, unmap: int, sector: int, sectors: int) -> None:
    driver = rig(backed.device())
    request = header(Request.WRITE_ZEROES), segment(sector, sectors, unmap)
    assert status(driver.ask(*request, room=1)) is Status.OK
    start, end = sector * 512, (sector + sectors) * 512
    assert backed.contents() == backed.initial[:start] + bytes(end - start) + backed.initial[end:]


def test_serial_flush_and_unknown_requests_between_transfers(rig: MakeRig, backed: Backed) -> None:
    driver = rig(backed.device(serial="S"))
    for i in range(60):
        kind = (Request.IN, Request.FLUSH, 99, Request.GET_ID)[i % 4]
        driver.offer(header(kind, i), room=(513, 1, 1, 21)[i % 4])
    driver.serve()
    for i, answer in enumerate(driver.answers()):
        data = (backed.initial[i * 512 : (i + 1) * 512], b"", b"", b"S".ljust(20, b"\0"))[i % 4]
        assert answer == (len(data) + 1, data + bytes([Status.UNSUPP if i % 4 == 2 else Status.OK]))


def test_null_disk_takes_all_and_gives_nothing(rig: MakeRig) -> None:
    device = Blk(NullDisk(1 << 20))
    device.negotiated(~0)
    driver = rig(device)
    assert driver.ask(header(Request.IN, 2047), room=(512, 1)) == (513, b"\xee" * 512 + b"\0")
    assert status(driver.ask(header(Request.OUT), b"x" * 512, room=1)) is Status.OK
    assert status(driver.ask(header(Request.IN, 2048), room=513)) is Status.IOERR
    for kind in (Request.DISCARD, Request.WRITE_ZEROES):
        assert status(driver.ask(header(kind), segment(0, 8), room=1)) is Status.OK
    assert driver.ask(header(Request.IN, 0)[:4], header(Request.IN, 0)[4:], room=513)[1][-1] == 0


@pytest.mark.parametrize("size", [0, -512, 511, 513])
def test_disks_have_whole_sectors(size: int) -> None:
    with pytest.raises(DeviceError, match=f"a disk of {size} bytes"):
        NullDisk(size)


def test_read_only_is_said_to_the_disk() -> None:
    with pytest.raises(DeviceError, match="make a read-only disk"):
        Blk(NullDisk(512), read_only=True)
    Blk(NullDisk(512, read_only=True), read_only=True).close()
