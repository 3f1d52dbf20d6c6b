# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A virtio driver in another domain and our daemons in this one: every kind of region, from socket to data.

A guest does one run after the other. In its first run its grant references are consecutive, so buffers are
single descriptors; later ones get references in descending order, and a descriptor for each page.
"""

import contextlib
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.daemons import Daemon
from vhost.devices.entropy import SeededSource
from vhost.protocol import MemoryRegion, ProtocolFeature, VirtioFeature

from .daemons import daemon
from .frontend import (
    FEATURES,
    FOREIGN,
    GRANT,
    GRANT_BIT,
    NO_ADVANCE,
    NO_ADVANCE_8,
    PROTOCOL_FEATURES,
    EventBridge,
    Frontend,
    region,
)
from .linux_guest import MEMORY, LinuxGuest
from .watch import Watch

pytestmark = pytest.mark.timeout(900)

PAGE = 4096
BYTES = 4 << 20  # of the disk, which is larger
TAIL = 1 << 20  # behind them, where nothing may change
REFS = 64 * 512  # that a domain can have: 64 frames of its grant table, the default
RING_PAGES, ALL_PAGES = 3, 102  # granted by the driver


# ---- the regions of a guest, as a front-end may choose them ----


def on_demand(guest: LinuxGuest) -> list[MemoryRegion]:
    """All that a guest can ever grant."""
    return [region(guest.domid, GRANT_BIT, REFS * PAGE, GRANT | NO_ADVANCE)]


def on_demand_8(guest: LinuxGuest) -> list[MemoryRegion]:
    """The same, as front-ends of vm-memory say it."""
    return [region(guest.domid, GRANT_BIT, REFS * PAGE, GRANT | NO_ADVANCE_8)]


def in_advance(guest: LinuxGuest) -> list[MemoryRegion]:
    """All that the driver has granted, which must be writable."""
    return [region(guest.domid, address, size, GRANT) for _, address, size in guest.areas()]


def ring_in_advance(guest: LinuxGuest) -> list[MemoryRegion]:
    """The ring's pages in advance, what can be granted around them on demand."""
    regions, start = [], GRANT_BIT
    for address, size in sorted((address, size) for group, address, size in guest.areas() if group == "ring"):
        regions.append(region(guest.domid, start, address - start, GRANT | NO_ADVANCE))
        regions.append(region(guest.domid, address, size, GRANT))
        start = address + size
    return [*regions, region(guest.domid, start, GRANT_BIT + REFS * PAGE - start, GRANT | NO_ADVANCE)]


def foreign(guest: LinuxGuest) -> list[MemoryRegion]:
    """The pages that the driver uses."""
    return [region(guest.domid, address, size, FOREIGN) for _, address, size in guest.areas()]


def all_foreign(guest: LinuxGuest) -> list[MemoryRegion]:
    """All memory of the guest. Not of a PV domain, whose page tables nobody may map writable."""
    return [region(guest.domid, 0, MEMORY, FOREIGN)]


class Kind(NamedTuple):
    """How a front-end describes memory, and what goes with it."""

    regions: Callable[[LinuxGuest], list[MemoryRegion]]
    options: dict[str, str | int] = {}  # noqa: RUF012 - of the driver
    held: int = 0  # grants that are in use for as long as there are regions
    running: int = RING_PAGES  # grants that are in use while the ring is started and idle


KINDS = {
    "on-demand": Kind(on_demand),
    "on-demand-8": Kind(on_demand_8),
    "indirect": Kind(on_demand, {"indirect": 1}),
    "events": Kind(on_demand, {"events": 1}),
    "in-advance": Kind(in_advance, {"readonly": 0}, ALL_PAGES, ALL_PAGES),
    "ring-in-advance": Kind(ring_in_advance, {}, RING_PAGES, RING_PAGES),
    "foreign": Kind(foreign, {"kind": "foreign"}),
    "all-foreign": Kind(all_foreign, {"kind": "foreign"}),
}
DOMAINS = ("pv", "pvh")


# ---- guests ----


class Guests:
    """A guest of each type, booted when wanted and kept for the next test while it is well."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._idle: dict[str, LinuxGuest] = {}

    @contextlib.contextmanager
    def run(self, domain: str, **options: str | int) -> Iterator[LinuxGuest]:
        """A guest whose driver begins a run with these options, which ends with its release."""
        guest = self._idle.pop(domain, None)
        if guest is None:
            guest = LinuxGuest(domain, self._work, **options)
        else:
            guest.again(**options)
        try:
            yield guest
        except BaseException:
            guest.destroy()
            raise
        self._idle[domain] = guest

    def destroy(self) -> None:
        """Ends all."""
        for guest in self._idle.values():
            guest.destroy()


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    made = Guests(tmp_path_factory.mktemp("guests"))
    yield made
    made.destroy()


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder for a socket, whose path must be short, and a log."""
    with tempfile.TemporaryDirectory(prefix="vhost-") as folder:
        yield Path(folder)


# ---- the data of a disk, see xen_guest/driver.c ----


def disk(size: int, seed: int) -> bytes:
    """What the driver writes."""
    noise, state = bytearray(), seed
    for _ in range(PAGE):
        state = (state * 1664525 + 1013904223) % (1 << 32)
        noise.append(state >> 24)
    twice = bytes(noise * 2)
    pages = (twice[k * 64 % PAGE :][:PAGE] for k in range(size // PAGE))
    return b"".join(k.to_bytes(8, "little") + page[8:] for k, page in enumerate(pages))


def requests(size: int, seed: int) -> int:
    """How many requests write that."""
    pages = count = 0
    while pages < size // PAGE:
        pages += 1 + (count * 5 + seed) % 8
        count += 1
    return count


def beginning(image: Path) -> bytes:
    """What there is on the disk, a little further than the driver writes."""
    with open(image, "rb") as file:
        return file.read(BYTES + TAIL)


@contextlib.contextmanager
def front_end(served_by: Daemon) -> Iterator[Frontend]:
    """A session with a daemon, whose last words are told with what goes wrong inside."""
    with Frontend(served_by.socket) as frontend:
        try:
            yield frontend
        except BaseException as error:
            error.add_note(f"{served_by.name}:\n{served_by.tail()}")
            raise


@pytest.mark.parametrize(
    ("domain", "kind"),
    [(domain, kind) for domain in DOMAINS for kind in KINDS if (domain, kind) != ("pv", "all-foreign")],
)
def test_blk(guests: Guests, domain: str, kind: str, blk: Watch, image: Path) -> None:
    regions, options, held, _ = KINDS[kind]
    seed = 1 + list(KINDS).index(kind)  # what an earlier test has left on the disk is of another one
    tail = beginning(image)[BYTES:]
    with (
        guests.run(domain, bytes=BYTES, seed=seed, **options) as guest,
        front_end(blk.daemon) as frontend,
    ):
        indirect = VirtioFeature.RING_INDIRECT_DESC if kind == "indirect" else 0
        frontend.negotiate(FEATURES | indirect, PROTOCOL_FEATURES | ProtocolFeature.CONFIG)
        assert int.from_bytes(frontend.config(0, 8), "little") == image.stat().st_size // 512
        place = guest.ring()
        frontend.share(regions(guest))
        frontend.start(place, polled=kind != "events")
        count = 2 * requests(BYTES, seed)
        if kind == "events":
            with EventBridge(frontend, guest.domid, guest.port()) as bridge:
                assert guest.result() == ["ok", f"{BYTES:x}"]
            assert 0 < bridge.kicks <= count + 1  # it is pending when it is bound
            assert 0 < bridge.calls <= count
        else:
            assert guest.result() == ["ok", f"{BYTES:x}"]
        assert not frontend.broken()
        assert frontend.stop() == count
        if held:
            frontend.share([])
        assert guest.release() == 0
        assert beginning(image) == disk(BYTES, seed) + tail


@pytest.mark.parametrize("domain", DOMAINS)
def test_rng(guests: Guests, domain: str, work: Path) -> None:
    size = 100_000
    with (
        guests.run(domain, device="rng", bytes=size) as guest,
        daemon("vhost-rng", "--seed", "5", work=work) as rng,
        front_end(rng) as frontend,
    ):
        frontend.negotiate()
        place = guest.ring()
        frontend.share(on_demand(guest))
        frontend.start(place, polled=True)
        assert guest.result() == ["ok", f"{size:x}", f"{zlib.crc32(SeededSource(5)(size)):x}"]
        assert not frontend.broken()
        frontend.stop()
        assert guest.release() == 0


@pytest.mark.parametrize("kind", ["on-demand", "in-advance", "ring-in-advance"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_grants_in_use(guests: Guests, domain: str, kind: str, blk: Watch) -> None:
    """The guest sees how many of its grants are in use: so the zeros above are worth something."""
    regions, options, _, running = KINDS[kind]
    with (
        guests.run(domain, bytes=64 * PAGE, **options) as guest,
        front_end(blk.daemon) as frontend,
    ):
        frontend.negotiate()
        place = guest.ring()
        frontend.share(regions(guest))
        frontend.start(place, polled=True)
        assert guest.result() == ["ok", f"{64 * PAGE:x}"]
        assert guest.release() == running
        # Granted or not, what is mapped stays so until it is given back.
        assert not frontend.broken(seconds=1)
        frontend.stop()
