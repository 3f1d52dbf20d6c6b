# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The daemons serve another domain: every kind of region and of domain, and what they have mapped when."""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.prerequisites import tool
from vhost.errors import RefusedError
from vhost.virtio.blk import HEADER, SECTOR, BlkRequest, BlkStatus

from .driver import KINDS, ON_DEMAND, Driver
from .frontend import FOREIGN, GRANT
from .guest import Guest
from .puppet import Puppet
from .watch import Watch, watched

pytestmark = pytest.mark.timeout(300)

PAGE = 4096
RING_PAGES = 3
PART = 1 << 20  # bytes of the disk
PRIVCMD, GNTDEV = "/dev/xen/privcmd", "/dev/xen/gntdev"
NOBODY = 65534

every_kind = pytest.mark.parametrize("flags", KINDS.values(), ids=KINDS)
chains = pytest.mark.parametrize("table_len", [0, 4], ids=["direct", "indirect"])


def mapped(driver: Driver) -> int:
    """Pages that a device has mapped while the ring runs and no request is under way."""
    if driver.flags in ON_DEMAND.values():
        return RING_PAGES
    # The page of the used ring is mapped once more, to be watched.
    return driver.pages + (driver.flags == GRANT)


def in_use(driver: Driver) -> list[int]:
    """The grants that are in use then."""
    if driver.flags == FOREIGN:
        return []
    pages = RING_PAGES if driver.flags in ON_DEMAND.values() else driver.pages
    return [driver.ref(page) for page in range(pages)]


def content(image: Path) -> bytes:
    """The part of the disk that these tests use."""
    with open(image, "rb") as file:
        return file.read(PART)


def expect_stopped(guest: Guest, watch: Watch, base: int) -> None:
    """Stops the ring; nothing is mapped any more but what was in advance, and that goes with its region."""
    driver = guest.driver
    assert guest.frontend.stop() == base
    left = 0 if driver.flags in ON_DEMAND.values() else driver.pages
    assert watch.pages == left
    guest.frontend.share([])
    assert watch.pages == 0
    assert driver.puppet.grants_in_use() == []
    assert GNTDEV not in watch.opened()


@every_kind
@chains
def test_random_bytes(rng: Watch, puppet: Puppet, flags: int, table_len: int) -> None:
    driver = Driver(puppet, flags, slots=8, span=4 * PAGE, table_len=table_len)
    with Guest.running(rng.socket, driver) as guest:
        rooms = [[16], [PAGE], [4 * PAGE], [1, 999, 9000], [1024]]
        answers = [guest.request([], room) for room in rooms]
        for answer, room in zip(answers, rooms, strict=True):
            assert 0 < len(answer) <= sum(room)  # a device may give less than there is room for
        assert len(set(answers)) == len(answers)
        assert len(set(b"".join(answers))) > 250, "not random"
        assert rng.pages == mapped(driver)
        assert puppet.grants_in_use() == in_use(driver)
        expect_stopped(guest, rng, len(rooms))


@every_kind
@chains
def test_a_disk(blk: Watch, image: Path, puppet: Puppet, flags: int, table_len: int) -> None:
    driver = Driver(puppet, flags, slots=4, span=3 * PAGE, table_len=table_len)
    before = content(image)
    small, large = os.urandom(SECTOR), os.urandom(2 * PAGE)
    with Guest.running(blk.socket, driver) as guest:

        def write(sector: int, *data: bytes) -> bytes:
            return guest.request([HEADER.pack(BlkRequest.OUT, 0, sector), *data], [1])

        def read(sector: int, *sizes: int) -> bytes:
            return guest.request([HEADER.pack(BlkRequest.IN, 0, sector)], [*sizes, 1])

        ok, failed = bytes([BlkStatus.OK]), bytes([BlkStatus.IOERR])
        assert read(2, SECTOR) == before[2 * SECTOR :][:SECTOR] + ok
        assert read(8, PAGE, PAGE) == before[8 * SECTOR :][: 2 * PAGE] + ok
        assert write(3, small) == ok
        assert write(16, large[:PAGE], large[PAGE:]) == ok
        assert read(3, SECTOR) == small + ok
        assert read(16, 2 * PAGE) == large + ok
        assert guest.request([HEADER.pack(BlkRequest.FLUSH, 0, 0)], [1]) == ok
        assert (
            guest.request([HEADER.pack(BlkRequest.GET_ID, 0, 0)], [20, 1]) == b"a disk".ljust(20, b"\0") + ok
        )
        end = image.stat().st_size // SECTOR
        assert read(end, SECTOR)[-1:] == failed
        assert read(end - 1, 2 * SECTOR)[-1:] == failed
        assert write(end - 7, large[:PAGE]) == failed
        assert blk.pages == mapped(driver)
        assert puppet.grants_in_use() == in_use(driver)
        expect_stopped(guest, blk, 11)
    blk.settle()
    expected = bytearray(before)
    expected[3 * SECTOR : 4 * SECTOR], expected[16 * SECTOR : 32 * SECTOR] = small, large
    assert content(image) == expected


@every_kind
def test_a_guest_that_reads_and_writes_at_once(blk: Watch, image: Path, puppet: Puppet, flags: int) -> None:
    """Batches in which both directions are too large to be copied, or only one is."""
    driver = Driver(puppet, flags, slots=8, span=3 * PAGE, table_len=4)
    data = os.urandom(PART)
    half = PART // 2
    before = content(image)
    with Guest.running(blk.socket, driver) as guest:
        requests: list[tuple[list[bytes], list[int]]] = []
        for at in range(0, half, 2 * PAGE):
            requests.append(
                ([HEADER.pack(BlkRequest.OUT, 0, at // SECTOR), data[at : at + 2 * PAGE]], [1]),
            )
            requests.append(([HEADER.pack(BlkRequest.IN, 0, (half + at) // SECTOR)], [2 * PAGE, 1]))
        answers = dict(guest.stream(requests))
        expect_stopped(guest, blk, len(requests))
    for number, answer in answers.items():
        at = half + number // 2 * 2 * PAGE
        assert answer == (before[at : at + 2 * PAGE] if number % 2 else b"") + bytes([BlkStatus.OK])
    blk.settle()
    assert content(image) == data[:half] + before[half:]


def test_a_descriptor_of_privcmd_is_taken_and_closed(rng: Watch, puppet: Puppet) -> None:
    driver = Driver(puppet, FOREIGN)
    with Guest(rng.socket, driver) as guest:
        guest.frontend.share(driver.regions(), device=PRIVCMD)
        guest.frontend.start(driver.place)
        assert any(guest.request([], [PAGE]))
        assert rng.pages == driver.pages
        assert PRIVCMD not in rng.opened()
        expect_stopped(guest, rng, 1)


@pytest.fixture
def unprivileged(folder: Path) -> Iterator[Watch]:
    """A daemon that may not open Xen's devices."""
    work = folder / "unprivileged"
    work.mkdir()
    work.chmod(0o777)
    script = work / "vhost-rng"  # the name that the lines of its log begin with
    installed = Path(sysconfig.get_path("scripts"), script.name)
    as_nobody = f"{tool('setpriv')} --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    script.write_text(f'#!/bin/sh\nexec {as_nobody} {installed} "$@"\n')
    script.chmod(0o755)
    with watched(str(script), work=work) as watch, watch.test():
        yield watch


def test_a_daemon_without_privileges_maps_through_the_descriptor_it_gets(
    unprivileged: Watch, hvm: Puppet
) -> None:
    driver = Driver(hvm, FOREIGN)
    with Guest(unprivileged.socket, driver) as guest:
        with pytest.raises(RefusedError):
            guest.frontend.share(driver.regions())
        unprivileged.complaint("refused: SET_MEM_TABLE.*cannot open /dev/xen/privcmd .*Permission denied")
        guest.frontend.share(driver.regions(), device=PRIVCMD)
        guest.frontend.start(driver.place)
        assert any(guest.request([], [PAGE]))
        assert unprivileged.pages == driver.pages
        assert PRIVCMD not in unprivileged.opened()
        expect_stopped(guest, unprivileged, 1)
