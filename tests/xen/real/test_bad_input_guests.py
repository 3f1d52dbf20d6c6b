# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guests that do not grant what they ask a device to use: their ring breaks, nobody else notices."""

from collections.abc import Callable

import pytest

from pyxenctrl.control import Control
from pyxenctrl.domain import DomainKind
from vhost.errors import RefusedError
from vhost.mem.grants import COPY_EACH
from vhost.virtio.blk import HEADER, SECTOR, BlkRequest, BlkStatus

from .conftest import gone_at_the_end
from .driver import Driver
from .frontend import FOREIGN, GRANT, GRANT_BIT, NO_ADVANCE
from .guest import Guest
from .puppet import Puppet
from .watch import SECONDS, Watch

pytestmark = pytest.mark.timeout(300)

PAGE = 4096
COPIED, MAPPED = 512, COPY_EACH + PAGE  # bytes
AREA = -(-MAPPED // PAGE) + 1  # pages of a request
RING_PAGES = 3
SLOT = 3  # of the request with a bad buffer
OTHER_DOMAIN = 5000

sizes = pytest.mark.parametrize("size", [COPIED, MAPPED], ids=["copied", "mapped"])


def only_the_ring(driver: Driver) -> list[int]:
    return [driver.ref(page) for page in range(RING_PAGES)]


def expect_broken(guest: Guest, watch: Watch, why: str) -> None:
    """The ring breaks, for this reason; nothing but its own pages stays mapped."""
    assert guest.frontend.broken(seconds=SECONDS)
    watch.complaint(f"ring 0 is broken until it is set up anew: queue 0: .*{why}")
    assert watch.pages == RING_PAGES
    assert guest.driver.puppet.grants_in_use() == only_the_ring(guest.driver)


def expect_next(watch: Watch, puppet: Puppet) -> None:
    """The next session is served."""
    watch.settle()
    assert puppet.grants_in_use() == []
    with Guest.running(watch.socket, Driver(puppet, GRANT | NO_ADVANCE)) as guest:
        header = [HEADER.pack(BlkRequest.IN, 0, 0)] if "blk" in watch.daemon.name else []
        assert len(guest.request(header, [SECTOR, 1])) > 0


def ask(guest: Guest, slot: int, size: int, *, blk: bool) -> None:
    """A request to be answered with so many bytes, or to write so many."""
    if blk:
        guest.driver.add(slot, [HEADER.pack(BlkRequest.OUT, 0, 0), bytes(size)], [1])
    else:
        guest.driver.add(slot, [], [size])


# ---- what can be wrong with the grant of a page ----


def not_granted(driver: Driver, page: int) -> None:
    driver.puppet.revoke(driver.ref(page))


def for_another_domain(driver: Driver, page: int) -> None:
    driver.puppet.grant(driver.ref(page), page, to=OTHER_DOMAIN)


def read_only(driver: Driver, page: int) -> None:
    driver.puppet.grant(driver.ref(page), page, read_only=True)


@sizes
@pytest.mark.parametrize("spoil", [not_granted, for_another_domain, read_only])
@pytest.mark.parametrize("used_before", [False, True], ids=["at once", "later"])
def test_answers_that_have_no_place(
    rng: Watch, hvm: Puppet, spoil: Callable[[Driver, int], None], used_before: bool, size: int
) -> None:
    """The page for an answer is not granted, in the midst of good requests; or not any more."""
    driver = Driver(hvm, GRANT | NO_ADVANCE, slots=8, span=AREA * PAGE)
    page = driver.writable + SLOT * AREA
    with Guest.running(rng.socket, driver) as guest:
        base = 0
        if used_before:
            assert guest.request([], [size], slot=SLOT)
            base = 1
        spoil(driver, page)
        for slot in range(SLOT + 2):
            ask(guest, slot, size, blk=False)
        guest.submit()
        copied = size == COPIED
        # Where a copied answer cannot go shows when it is there: that request is lost, and it alone. A batch
        # that cannot be mapped is served up to the bad one.
        good = [slot for slot in range(SLOT + 2) if slot != SLOT] if copied else list(range(SLOT))
        assert [slot for slot, _ in guest.answers(len(good))] == good
        expect_broken(guest, rng, f"grants cannot be used: .* of domain {hvm.domid}")
        base += SLOT + 2 if copied else SLOT
        assert guest.frontend.stop() == base
        assert hvm.grants_in_use() == []
        # The guest can make good for it.
        hvm.grant(driver.ref(page), page)
        guest.frontend.start(driver.place, base=base)
        if copied:
            assert guest.request([], [size], slot=0)
        else:
            guest.frontend.kick()
            assert [slot for slot, _ in guest.answers(2)] == [SLOT, SLOT + 1]
    expect_next(rng, hvm)


@sizes
@pytest.mark.parametrize("spoil", [not_granted, for_another_domain])
def test_data_that_cannot_be_read(
    blk: Watch, hvm: Puppet, spoil: Callable[[Driver, int], None], size: int
) -> None:
    driver = Driver(hvm, GRANT | NO_ADVANCE, slots=8, span=AREA * PAGE)
    page = driver.readable + SLOT * AREA + (size == MAPPED)  # the header in front of the data is good
    with Guest.running(blk.socket, driver) as guest:
        spoil(driver, page)
        for slot in range(SLOT + 2):
            ask(guest, slot, size, blk=True)
        guest.submit()
        assert guest.answers(SLOT) == [(slot, bytes([BlkStatus.OK])) for slot in range(SLOT)]
        expect_broken(guest, blk, f"grants cannot be used: cannot (copy|map) .* of domain {hvm.domid}")
        assert guest.frontend.stop() == SLOT
        driver.puppet.grant(driver.ref(page), page, read_only=True)
        guest.frontend.start(driver.place, base=SLOT)
        guest.frontend.kick()
        assert [slot for slot, _ in guest.answers(2)] == [SLOT, SLOT + 1]
    expect_next(blk, hvm)


def test_a_table_that_cannot_be_read(rng: Watch, hvm: Puppet) -> None:
    driver = Driver(hvm, GRANT | NO_ADVANCE, slots=8, table_len=PAGE // 16)
    with Guest.running(rng.socket, driver) as guest:
        heads = [driver.add(slot, [], [16, 16]) for slot in range(SLOT + 2)]
        hvm.revoke(driver.ref(driver.tables + heads[SLOT]))
        guest.submit()
        assert [slot for slot, _ in guest.answers(SLOT)] == list(range(SLOT))
        expect_broken(guest, rng, f"grants cannot be used: cannot copy .* of domain {hvm.domid}")
        assert guest.frontend.stop() == SLOT
    expect_next(rng, hvm)


@pytest.mark.parametrize(
    ("page", "offset", "size", "why"),
    [
        (0, -1, 2, r"2 bytes at guest address 0x[0-9a-f]+ are not wholly in guest memory"),
        (-1, 100, PAGE, f"{PAGE} bytes at guest address 0x[0-9a-f]+ are not wholly in guest memory"),
        (0, 0, 16, "16 bytes at guest address"),
        (1 << 20, 0, 16, "16 bytes at guest address"),
        (0, -(1 << 63), 16, "16 bytes at guest address 0x[0-9a-f]{1,8} are not"),  # without bit 63
    ],
)
def test_buffers_past_the_region(
    rng: Watch, hvm: Puppet, page: int, offset: int, size: int, why: str
) -> None:
    driver = Driver(hvm, GRANT | NO_ADVANCE)
    address = driver.address(driver.pages + page) + offset
    with Guest.running(rng.socket, driver) as guest:
        assert driver.queue.add([], [(address, size)]) >= 0
        guest.submit()
        expect_broken(guest, rng, why)
        assert guest.frontend.stop() == 0
    expect_next(rng, hvm)


def test_a_buffer_past_the_last_reference_there_can_be(rng: Watch, hvm: Puppet) -> None:
    driver = Driver(hvm, GRANT | NO_ADVANCE)
    last = driver.region(0, 1)
    with Guest.running(rng.socket, driver) as guest:
        address = GRANT_BIT | 0xFFFF_FFFF << 12
        guest.add(last.__class__(address, 4 * PAGE, address, 0, driver.flags, hvm.domid))
        driver.queue.add([], [(address, 2 * PAGE)])
        guest.submit()
        expect_broken(guest, rng, "grant references end at 0xffffffff, this would need 0x100000000")
        assert guest.frontend.stop() == 0
    expect_next(rng, hvm)


@pytest.mark.parametrize("part", range(RING_PAGES), ids=["descriptors", "avail", "used"])
@pytest.mark.parametrize("spoil", [not_granted, read_only])
def test_a_ring_that_is_not_granted(
    rng: Watch, hvm: Puppet, part: int, spoil: Callable[[Driver, int], None]
) -> None:
    driver = Driver(hvm, GRANT | NO_ADVANCE)
    spoil(driver, part)
    with Guest(rng.socket, driver) as guest:
        guest.frontend.share(driver.regions())
        with pytest.raises(RefusedError, match="SET_VRING_KICK"):
            guest.frontend.start(driver.place)
        rng.complaint(f"refused: SET_VRING_KICK.*cannot map 1 grants of domain {hvm.domid} ")
        assert rng.pages == 0
        assert hvm.grants_in_use() == []
        hvm.grant(driver.ref(part), part)
        guest.frontend.start(driver.place)
        assert any(guest.request([], [PAGE]))
    expect_next(rng, hvm)


@pytest.mark.parametrize("kind", DomainKind, ids=lambda kind: kind.value)
@pytest.mark.parametrize(
    ("flags", "size"),
    [(FOREIGN, MAPPED), (GRANT, MAPPED), (GRANT | NO_ADVANCE, COPIED), (GRANT | NO_ADVANCE, MAPPED)],
    ids=["foreign", "in advance", "copied", "mapped"],
)
def test_a_domain_that_is_destroyed(
    rng: Watch, control: Control, kind: DomainKind, flags: int, size: int
) -> None:
    """Of what was mapped nothing is lost; the domain is gone when the session ends."""
    with gone_at_the_end(control, Puppet(control, kind)) as puppet:
        driver = Driver(puppet, flags, slots=8, span=AREA * PAGE)
        with Guest.running(rng.socket, driver) as guest:
            assert any(guest.request([], [size]))
            ask(guest, 0, size, blk=False)
            while not driver.queue.publish():  # the daemon is awake, and serves it
                guest.answers(1)
                ask(guest, 0, size, blk=False)
            puppet.close()
            info = control.info(puppet.domid)
            assert info is not None
            assert info.dying
            guest.frontend.kick()
            if flags & NO_ADVANCE:
                assert guest.frontend.broken(seconds=SECONDS)
                rng.complaint(f"ring 0 is broken .*grants cannot be used: .* of domain {puppet.domid} ")
                assert rng.pages == RING_PAGES
            else:
                assert guest.frontend.called(SECONDS)
                assert rng.pages >= driver.pages
        rng.settle()
    with gone_at_the_end(control, Puppet(control, kind)) as puppet:
        expect_next(rng, puppet)
