# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Daemons and grants over time: a lot of data, the cache, regions that come and go, a daemon's death."""

import hashlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxenctrl.control import Control
from pyxenctrl.domain import DomainKind
from vhost.virtio.blk import HEADER, SECTOR, BlkRequest, BlkStatus

from .conftest import gone_at_the_end
from .daemons import Daemon, daemon
from .driver import ON_DEMAND, Driver
from .frontend import GRANT, NO_ADVANCE
from .guest import Guest, Request
from .puppet import Puppet, until
from .watch import SECONDS, Watch, watched

pytestmark = pytest.mark.timeout(300)

PAGE = 4096
RING_PAGES = 3
DEPTH = 32
LIMIT = 12  # pages that are kept
SIZES = [size << 10 for size in (4, 12, 64, 64, 96, 128, 128, 128)]  # of requests
OK = bytes([BlkStatus.OK])


def pieces(size: int, seed: int) -> list[tuple[int, int]]:
    """The whole disk in requests of all sizes, in some order: (offset, bytes)."""
    chance, found, at = random.Random(seed), [], 0
    while at < size:
        found.append((at, min(chance.choice(SIZES), size - at)))
        at += found[-1][1]
    chance.shuffle(found)
    return found


def write(offset: int, data: bytes) -> Request:
    return [HEADER.pack(BlkRequest.OUT, 0, offset // SECTOR), data], [1]


def read(offset: int, size: int) -> Request:
    return [HEADER.pack(BlkRequest.IN, 0, offset // SECTOR)], [size, 1]


def test_a_disk_full_of_data(control: Control, blk: Watch, image: Path) -> None:
    size = image.stat().st_size
    data = random.Random(1).randbytes(size)
    largest = max(SIZES) + PAGE  # with the header in front, or the status behind
    with gone_at_the_end(control, Puppet(control, DomainKind.PV, 1200)) as puppet:
        driver = Driver(puppet, GRANT | NO_ADVANCE, slots=DEPTH, size=128, span=largest, room=PAGE)
        order = pieces(size, 2)
        with Guest.running(blk.socket, driver) as guest:
            requests = (write(at, data[at : at + n]) for at, n in order)
            assert {answer for _, answer in guest.stream(requests)} == {OK}
            assert puppet.grants_in_use() == [driver.ref(page) for page in range(RING_PAGES)]
            assert blk.pages == RING_PAGES
            assert guest.frontend.stop() == len(order)
            assert blk.pages == 0
            driver.revoke()
        with open(image, "rb") as file:
            assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(data).digest()

        driver = Driver(puppet, GRANT | NO_ADVANCE, slots=DEPTH, size=128, span=PAGE, room=largest)
        order = pieces(size, 3)
        with Guest.running(blk.socket, driver) as guest:
            for number, answer in guest.stream(read(at, n) for at, n in order):
                at, n = order[number]
                assert answer[-1:] == OK
                assert answer[:-1] == data[at : at + n]
            assert blk.pages == RING_PAGES
            assert guest.frontend.stop() == len(order)
            assert blk.pages == 0
        driver.revoke()
        assert puppet.grants_in_use() == []


@pytest.fixture(scope="module")
def running_caching(folder: Path, image: Path) -> Iterator[Watch]:
    work = folder / "caching"
    work.mkdir()
    options = "--blk-file", image, "--no-lock", "--grant-cache", str(LIMIT)  # another daemon has it too
    with watched("vhost-blk", *options, work=work) as watch:
        yield watch


@pytest.fixture
def caching(running_caching: Watch) -> Iterator[Watch]:
    """A disk that keeps grants mapped."""
    with running_caching.test() as watch:
        yield watch


def test_pages_that_are_kept(caching: Watch, puppet: Puppet) -> None:
    """Pages stay in use after their request, up to the limit, and until the ring stops."""
    driver = Driver(puppet, GRANT | NO_ADVANCE, slots=8, span=16 * PAGE, room=PAGE)
    ring = [driver.ref(page) for page in range(RING_PAGES)]
    data = os.urandom(15 * PAGE)

    def kept() -> int:
        refs = puppet.grants_in_use()
        assert refs[:RING_PAGES] == ring
        assert caching.pages == len(refs)
        return len(refs) - RING_PAGES

    with Guest.running(caching.socket, driver) as guest:
        counts = []
        for slot in range(8):
            assert guest.request(*write(slot * PAGE, data[slot:][: 2 * PAGE]), slot=slot) == OK
            counts.append(kept())
        # Each request takes three pages, as its data begins behind the header.
        assert counts == [3, 6, 9, 12, 12, 12, 12, 12]
        with pytest.raises(OSError, match="busy"):
            puppet.revoke(driver.ref(driver.readable + 7 * 16))
        puppet.revoke(driver.ref(driver.readable))  # of the first, which was dropped for another
        for slot in (7, 5, 7, 6):
            assert guest.request(*write(slot * PAGE, data[slot:][: 2 * PAGE]), slot=slot) == OK
            assert kept() == LIMIT
        assert guest.request(*write(64 * PAGE, data), slot=7) == OK  # more than are kept at all
        assert kept() <= LIMIT
        assert guest.frontend.stop() == 13
        assert puppet.grants_in_use() == []
        assert caching.pages == 0
        guest.frontend.start(driver.place, base=13)
        assert guest.request(*write(0, data[: 2 * PAGE]), slot=3) == OK
        assert kept() == 3
    caching.settle()
    assert puppet.grants_in_use() == []


def test_drivers_learn_that_their_daemon_was_killed(folder: Path, control: Control) -> None:
    """Told not to kick by a daemon that was killed then, they would wait for ever."""

    def dead(running: Daemon) -> None:
        assert running.wait(SECONDS) == -signal.SIGKILL

    work = folder / "killed"
    work.mkdir()
    with (
        gone_at_the_end(control, Puppet(control, DomainKind.PV)) as pv,
        gone_at_the_end(control, Puppet(control, DomainKind.HVM)) as hvm,
        daemon("vhost-rng", "--socket-count", "2", work=work, finish=dead) as running,
        Guest.running(work / "vhost-rng.sock0", in_advance := Driver(pv, GRANT)) as first,
        Guest.running(work / "vhost-rng.sock1", on_demand := Driver(hvm, GRANT | NO_ADVANCE)) as second,
    ):
        assert any(first.request([], [PAGE]))
        assert any(second.request([], [PAGE]))
        assert pv.grants_in_use() == [in_advance.ref(page) for page in range(in_advance.pages)]
        assert hvm.grants_in_use() == [on_demand.ref(page) for page in range(RING_PAGES)]
        in_advance.used_flags = on_demand.used_flags = 1
        os.kill(Watch(running).pid, signal.SIGKILL)
        until(lambda: pv.grants_in_use() == hvm.grants_in_use() == [])
        assert (in_advance.used_flags, on_demand.used_flags) == (0, 0)


@pytest.mark.parametrize("flags", [*ON_DEMAND.values(), GRANT], ids=[*ON_DEMAND, "in advance"])
def test_regions_come_and_go_while_the_ring_runs(blk: Watch, hvm: Puppet, flags: int) -> None:
    driver = Driver(hvm, flags, slots=4, span=2 * PAGE)
    ring = driver.region(0, RING_PAGES)
    areas = driver.region(driver.writable, driver.readable), driver.region(driver.readable, driver.pages)
    in_advance = 0 if flags != GRANT else driver.pages - RING_PAGES
    rings = RING_PAGES + (flags == GRANT)  # the page of the used ring is mapped once more, to be watched
    data = os.urandom(PAGE)
    with Guest(blk.socket, driver) as guest:
        guest.frontend.share([ring])
        guest.frontend.start(driver.place)
        for times in range(3):
            assert blk.pages == rings
            for area in areas:
                guest.add(area)
            assert blk.pages == rings + in_advance
            assert guest.request(*write(times * PAGE, data)) == OK
            assert guest.request(*read(times * PAGE, PAGE)) == data + OK
            for area in areas:
                guest.remove(area)
            assert hvm.grants_in_use() == [driver.ref(page) for page in range(RING_PAGES)]
        # A region that a request is in: the ring breaks, and can go on with the request later.
        for area in areas:
            guest.add(area)
        assert guest.request(*read(0, PAGE)) == data + OK
        guest.remove(areas[0])
        driver.add(0, *read(0, PAGE))
        guest.submit()
        assert guest.frontend.broken(seconds=SECONDS)
        blk.complaint(f"ring 0 is broken .*{PAGE} bytes at guest address .* are not wholly in guest memory")
        assert guest.frontend.stop() == 7
        guest.add(areas[0])
        guest.frontend.start(driver.place, base=7)
        guest.frontend.kick()
        assert guest.answers(1) == [(0, data + OK)]
    blk.settle()
    assert hvm.grants_in_use() == []
