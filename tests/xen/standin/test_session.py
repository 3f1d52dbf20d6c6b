# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Sessions with a Xen guest from socket to device: each kind of region, what is mapped when, and refusals."""

import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

import vhost
from tests.backend.echo import Echo
from tests.backend.peer import DATA, FEATURES, PROTOCOL_FEATURES, RAM_SIZE, DriverRing, readable
from tests.backend.serving import Serving
from tests.backend.slow_disk import SIZE, SlowDisk
from vhost import Device
from vhost.devices.blk import Blk
from vhost.devices.entropy import SeededSource
from vhost.devices.rng import Rng
from vhost.errors import DeviceError
from vhost.mem.xen import XenMemory
from vhost.protocol import (
    AddMemReg,
    GetFeatures,
    GetProtocolFeatures,
    IotlbMsg,
    IotlbType,
    ProtocolFeature,
    RemMemReg,
    SetFeatures,
    SetOwner,
    SetProtocolFeatures,
    SetVringEnable,
    SetVringKick,
    VirtioFeature,
)

from .domain import BIT, FIRST_FRAME, FOREIGN, GRANT, KINDS, NO_ADVANCE, ON_DEMAND, Domain
from .fakes import FakeGnttab
from .frames import Frames

READ, BOTH, UNMAP = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE, -1
REQUESTS, ANSWERS, TABLES = DATA >> 12, (DATA + 0x10000) >> 12, 3  # references of their first pages
USED_IDX = 0x2002


every_kind = pytest.mark.parametrize("flags", KINDS.values(), ids=KINDS)
on_demand = pytest.mark.parametrize("flags", ON_DEMAND.values(), ids=ON_DEMAND)
chains = pytest.mark.parametrize("table_len", [0, 4], ids=["direct", "indirect"])


#: How grants that are not mapped in advance are reached, as options of the memory.
COPIED: dict[str, int] = {"copy_each": 64 * 1024}
MAPPED: dict[str, int] = {"copy_each": 0, "copy_all": 0}
both_ways = pytest.mark.parametrize("way", [COPIED, MAPPED], ids=["copied", "mapped"])


class Served(Serving):
    """A server, and domain 5 as its front-end."""

    def __init__(self, device: Device, folder: Path, guest: int, options: dict[str, int]) -> None:
        super().__init__(device, "threads", folder / "socket", partial(XenMemory, **options))
        self.guest = guest

    def domain(self, flags: int) -> Domain:
        return self.connect(lambda sock: Domain(sock, self.guest, flags))


@pytest.fixture
def serve(
    gnttab: FakeGnttab, frames: Frames, guest: int, tmp_path: Path
) -> Iterator[Callable[[Device], Served]]:
    """Serves a device until the test ends."""
    frames.base = FIRST_FRAME << 12
    gnttab.watch = USED_IDX
    with ExitStack() as stack:

        def start(device: Device, **options: int) -> Served:
            stack.callback(device.close)
            return stack.enter_context(Served(device, tmp_path, guest, options))

        yield start


@pytest.fixture
def way() -> dict[str, int]:
    """The options of the memory: what users get, unless a test wants others."""
    return {}


@pytest.fixture
def echo(serve: Callable[..., Served], way: dict[str, int]) -> Served:
    return serve(Echo(), **way)


def calls(gnttab: FakeGnttab) -> list[tuple[int, int, int]]:
    """(first reference, pages, protection) of what was mapped, with UNMAP where it was unmapped."""
    return [(call.ref, call.count, call.prot) for call in gnttab.call[: gnttab.calls]]


def running(domain: Domain, table_len: int = 0) -> DriverRing:
    """From nothing to a running ring."""
    domain.negotiate()
    domain.share()
    ring = domain.ring(0, 16, table_len)
    domain.start(ring)
    return ring


def run(domain: Domain, ring: DriverRing) -> None:
    domain.do(SetVringKick(ring.index), [ring.kick])
    domain.do(SetVringEnable(ring.index, 1))


def expect_broken(echo: Served, ring: DriverRing, gnttab: FakeGnttab, why: str) -> None:
    """The ring breaks, keeping nothing but its own pages; the front-end can go on, and so can the next."""
    assert readable(ring.err)
    echo.lines.wait(f"echo: ring 0 is broken .*queue 0: .*{why}", level="ERROR")
    assert gnttab.pages == 3
    assert echo.lines.having("Traceback|has not returned", "ERROR") == []


# ---- what works ----


@every_kind
@chains
@both_ways
def test_requests_are_answered(
    echo: Served, flags: int, table_len: int, gnttab: FakeGnttab, frames: Frames
) -> None:
    with echo.domain(flags) as domain:
        ring = running(domain, table_len)
        for n in (1, 64, 4096, 5000):
            data = bytes(i % 251 for i in range(n))
            assert ring.request(data, n + 1) == data[::-1]
        now = frames.pages, frames.maps, gnttab.pages
        assert now == {FOREIGN: (256, 1, 0), GRANT: (0, 0, 257)}.get(flags, (0, 0, 3))
        if flags == GRANT:
            assert calls(gnttab) == [(0, 256, BOTH), (2, 1, BOTH)], "the used ring's page is watched"
    echo.settled(1)
    assert (frames.pages, gnttab.pages) == (0, 0)


@every_kind
@chains
def test_rng(serve: Callable[..., Served], flags: int, table_len: int, gnttab: FakeGnttab) -> None:
    wanted = SeededSource(7)(2000)
    with serve(Rng(SeededSource(7))).domain(flags) as domain:
        ring = running(domain, table_len)
        assert [ring.request(b"", n) for n in (16, 1, 1983)] == [wanted[:16], wanted[16:17], wanted[17:]]
        if flags in ON_DEMAND.values():
            assert [ref for ref, _, prot in calls(gnttab) if prot == READ] == []


@every_kind
@chains
def test_blk(
    serve: Callable[..., Served], tmp_path: Path, flags: int, table_len: int, gnttab: FakeGnttab
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 64)
    sectors = os.urandom(1024)
    with serve(Blk(image, serial="xen")).domain(flags) as domain:
        ring = running(domain, table_len)
        assert ring.request(struct.pack("<IIQ", 0, 0, 2), 513) == image.read_bytes()[1024:1536] + b"\0"
        assert ring.request(struct.pack("<IIQ", 1, 0, 5) + sectors, 1) == b"\0"
        assert image.read_bytes()[2560:3584] == sectors
        assert ring.request(struct.pack("<IIQ", 0, 0, 5), 1025) == sectors + b"\0"
        assert ring.request(struct.pack("<IIQ", 8, 0, 0), 21) == b"xen".ljust(20, b"\0") + b"\0"
        assert ring.request(struct.pack("<IIQ", 0, 0, 32), 513)[-1:] == b"\1"
        if flags in ON_DEMAND.values():
            assert gnttab.pages == 3


@every_kind
@chains
@both_ways
def test_a_long_request_lets_the_ring_stop(
    serve: Callable[..., Served], flags: int, table_len: int, way: dict[str, int], gnttab: FakeGnttab
) -> None:
    disk = SlowDisk()
    with serve(Blk(disk, serial="xen"), **way).domain(flags) as domain:
        ring = running(domain, table_len)
        name = struct.pack("<IIQ", 8, 0, 0)
        ring.add(name, 21)
        ring.add(struct.pack("<IIQQII", 13, 0, 0, 0, SIZE >> 9, 0), 1, page=1)
        ring.add(name, 21, page=2)
        ring.kick_it()
        assert ring.answer()[:3] == b"xen"
        disk.wait(3)
        base = domain.base()
        assert base == 1
        if flags != GRANT:
            assert gnttab.pages == 0
        assert max(n for _, n in disk.start_over(0)) < SIZE
        domain.start(ring, base)
        assert (ring.answer(), ring.answer()[:3]) == (b"\0", b"xen")
        assert (disk.cleared[0][0], sum(n for _, n in disk.cleared)) == (0, SIZE)


# ---- what is mapped when ----


@on_demand
@chains
@both_ways
def test_a_batch_takes_one_call_of_each_kind(
    echo: Served, flags: int, table_len: int, way: dict[str, int], gnttab: FakeGnttab
) -> None:
    with echo.domain(flags) as domain:
        domain.negotiate()
        domain.share()
        assert gnttab.tries == 0
        ring = domain.ring(0, 16, table_len)
        domain.describe(ring)
        for page in range(8):
            ring.add(b"request %d" % page, 64, page=page)
        run(domain, ring)
        assert [ring.answer() for _ in range(8)] == [b"%d tseuqer" % page for page in range(8)]
        rings, batch = calls(gnttab)[:3], calls(gnttab)[3:]
        assert rings == [(0, 1, BOTH), (1, 1, BOTH), (2, 1, BOTH)]
        if way is COPIED:
            # The tables, what is read, and what was written; the last may come in parts, as it is pushed.
            assert (batch, gnttab.copies) == ([], 3 if table_len else 2)
            assert domain.base() == 8
            return
        assert gnttab.copies == 0
        if table_len:
            assert batch[:2] == [(TABLES, 8, READ), (TABLES, 8, UNMAP)]
            del batch[:2]
        assert batch[:2] == [(REQUESTS, 8, READ), (ANSWERS, 8, BOTH)]
        assert sorted(batch[2:]) == [(REQUESTS, 8, UNMAP), (ANSWERS, 8, UNMAP)]
        assert {call.watched for call in gnttab.call[: gnttab.calls]} == {0}, "the used index came later"
        assert domain.base() == 8
        assert gnttab.pages == 0


@on_demand
@pytest.mark.parametrize("way", [MAPPED])
def test_every_request_is_unmapped_before_the_driver_hears_of_it(
    echo: Served, flags: int, gnttab: FakeGnttab
) -> None:
    with echo.domain(flags) as domain:
        ring = running(domain)
        for n in range(20):
            assert ring.request(b"%02d" % n) == (b"%02d" % n)[::-1]
            assert gnttab.pages == 3
        assert [call.watched for call in gnttab.call[3 : gnttab.calls]] == [n // 4 for n in range(80)]
        assert [call for call in calls(gnttab) if call[0] < 3] == [(ref, 1, BOTH) for ref in range(3)]
        domain.base()
        assert gnttab.pages == 0


@on_demand
@both_ways
def test_what_the_device_only_reads_may_be_granted_read_only(
    echo: Served, flags: int, way: dict[str, int], gnttab: FakeGnttab
) -> None:
    with echo.domain(flags) as domain:
        ring = running(domain, 4)
        gnttab.read_only = ANSWERS
        assert ring.request(b"read-only") == b"ylno-daer"
        gnttab.read_only = ANSWERS + 1
        ring.add(b"and the answer", 64)
        ring.kick_it()
        words = {"copied": "14 bytes to offset 0x0 of grant 0x90", "mapped": "1 grants .* 0x90 on writable"}
        expect_broken(echo, ring, gnttab, words["copied" if way is COPIED else "mapped"])


@on_demand
@pytest.mark.parametrize("way", [MAPPED])
def test_busy_grants_are_waited_for(echo: Served, flags: int, gnttab: FakeGnttab) -> None:
    with echo.domain(flags) as domain:
        ring = running(domain)
        tries = gnttab.tries
        gnttab.fail_errno, gnttab.fail_times = errno.EAGAIN, 3
        assert ring.request(b"busy") == b"ysub"
        assert gnttab.tries == tries + 2 + 3


# ---- what a guest can do wrong ----


@on_demand
@both_ways
@pytest.mark.parametrize("good", [0, 3])
@pytest.mark.parametrize(
    ("bad", "table_len"), [("readable", 0), ("writable", 0), ("readable", 4), ("writable", 4), ("table", 4)]
)
def test_a_bad_grant_breaks_the_ring_alone(
    echo: Served, flags: int, table_len: int, good: int, bad: str, way: dict[str, int], gnttab: FakeGnttab
) -> None:
    with echo.domain(flags) as domain:
        domain.negotiate()
        domain.share()
        ring = domain.ring(0, 16, table_len)
        domain.describe(ring)
        for page in range(good):
            ring.add(b"good", 64, page=page)
        nothing = (BIT + RAM_SIZE + 0x10, 64)
        right = (BIT + DATA + 0xF000, 64)
        head = ring.driver.add(
            [nothing if bad == "readable" else right], [nothing if bad == "writable" else right]
        )
        if bad == "table":
            ring.memory(16 * head, 8)[:] = struct.pack("<Q", nothing[0])
        ring.driver.publish()
        run(domain, ring)
        assert [ring.answer() for _ in range(good)] == [b"doog"] * good
        expect_broken(echo, ring, gnttab, "grants cannot be used: cannot (map|copy) .* of domain 5")
        # Where an answer is to go shows only when there is one.
        assert domain.base() == good + (way is COPIED and bad == "writable")
        assert gnttab.pages == 0
    with echo.domain(flags) as domain:
        assert running(domain).request(b"next") == b"txen"


@on_demand
@pytest.mark.parametrize("way", [MAPPED])
def test_grants_taken_back_break_the_ring(echo: Served, flags: int, gnttab: FakeGnttab) -> None:
    with echo.domain(flags) as domain:
        ring = running(domain)
        assert ring.request(b"granted") == b"detnarg"
        gnttab.fail_errno, gnttab.fail_times = errno.EINVAL, 1
        ring.add(b"taken back", 64)
        ring.kick_it()
        expect_broken(echo, ring, gnttab, "took them back")
        assert domain.base() == 1
        # The ring can be set up anew, and goes on with the request it could not serve.
        domain.start(ring, 1)
        assert ring.answer() == b"kcab nekat"


@on_demand
def test_a_bad_table_leaves_its_chain_on_the_ring(echo: Served, flags: int, gnttab: FakeGnttab) -> None:
    with echo.domain(flags) as domain:
        domain.negotiate()
        domain.share()
        ring = domain.ring(0, 16, 4)
        domain.describe(ring)
        ring.add(b"x", 64)
        ring.memory(0x3000, 8)[:] = struct.pack("<Q", BIT + 4 * RAM_SIZE)
        run(domain, ring)
        expect_broken(echo, ring, gnttab, "1 bytes at guest address 0x8000000000400000 are not wholly")
        assert domain.base() == 0


@on_demand
def test_ring_pages_that_were_not_granted(echo: Served, flags: int, gnttab: FakeGnttab) -> None:
    gnttab.granted = 2
    with echo.domain(flags) as domain:
        domain.negotiate()
        domain.share()
        ring = domain.ring()
        domain.describe(ring)
        domain.refused(SetVringKick(0), [ring.kick])
        assert gnttab.pages == 0
        gnttab.granted = 256
        run(domain, ring)
        assert ring.request(b"granted") == b"detnarg"


@every_kind
def test_a_ring_rests_without_its_memory(
    echo: Served, flags: int, gnttab: FakeGnttab, frames: Frames
) -> None:
    with echo.domain(flags) as domain:
        ring = running(domain)
        (region,) = domain.table().regions
        for n in range(5):
            assert ring.request(bytes([1, n])) == bytes([n, 1])
            domain.do(RemMemReg(region))
            assert gnttab.pages == 0
            ring.add(bytes([2, n]), 64)
            ring.kick_it()
            if n % 2:
                domain.passing(domain.do, domain.table())
            else:
                domain.passing(domain.do, AddMemReg(region))
            assert ring.answer() == bytes([n, 2])
        assert not readable(ring.err, 0)
    assert not echo.lines.having("", "ERROR")


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"xen_flags": 0}, "neither FOREIGN nor GRANT.*pip uninstall vhost-xen"),
        ({"xen_flags": NO_ADVANCE}, "neither FOREIGN nor GRANT"),
        ({"xen_flags": FOREIGN | GRANT}, "FOREIGN goes with neither"),
        ({"xen_flags": GRANT | 0x4}, "unknown flags 0x4"),
        ({"guest_addr": 0x4000}, "addresses of grants have bit 63 set"),
        ({"domid": 0x7FF0}, "no such domain"),
        ({"domid": 6}, "grants cannot be used"),
        ({"size": RAM_SIZE + 1}, "grants cannot be used"),
        ({"xen_flags": FOREIGN, "guest_addr": FIRST_FRAME << 12 | 0x10}, "whole pages of 4096"),
        ({"xen_flags": FOREIGN, "guest_addr": FIRST_FRAME << 12, "size": 0x1001}, "whole pages of 4096"),
        ({"xen_flags": FOREIGN, "guest_addr": FIRST_FRAME - 1 << 12}, "256 frames cannot be mapped"),
    ],
)
def test_regions_that_are_refused(
    echo: Served, changes: dict[str, int], why: str, gnttab: FakeGnttab, frames: Frames
) -> None:
    with echo.domain(GRANT) as domain:
        domain.negotiate()
        domain.do(SetOwner())
        domain.passing(domain.refused, domain.table(**changes))
        echo.lines.wait(f"refused: SET_MEM_TABLE.*{why}", level="WARNING")
        assert (gnttab.maps, gnttab.pages, frames.pages) == (0, 0, 0)
        domain.share()
        ring = domain.ring()
        domain.start(ring)
        assert ring.request(b"all the same") == b"emas eht lla"


@every_kind
def test_access_platform_is_on_offer_and_means_no_iotlb(echo: Served, flags: int) -> None:
    with echo.domain(flags) as domain:
        offer = domain.value(GetFeatures())
        assert offer & VirtioFeature.ACCESS_PLATFORM
        protocol = PROTOCOL_FEATURES | ProtocolFeature.XEN_MMAP | ProtocolFeature.BACKEND_REQ
        domain.negotiate(FEATURES | VirtioFeature.ACCESS_PLATFORM, protocol)
        domain.share()
        ring = domain.ring()
        domain.start(ring)
        assert ring.request(b"as it is") == b"si ti sa"
        domain.refused(IotlbMsg(0, 4096, 0, 3, IotlbType.UPDATE))


def test_what_the_xen_build_cannot_do_without() -> None:
    for text in ("-protocol.xen-mmap", "-protocol-features"):
        with pytest.raises(DeviceError, match=f"the Xen build of vhost cannot do without {text[1:]}"):
            vhost.serve(Echo(), "/nowhere/at/all", features=text)


def test_xen_mmap_is_offered_and_required(echo: Served, gnttab: FakeGnttab, frames: Frames) -> None:
    with echo.domain(FOREIGN) as domain:
        domain.value(GetFeatures())
        offer = domain.value(GetProtocolFeatures())
        assert offer & ProtocolFeature.XEN_MMAP
        assert offer & ProtocolFeature.CONFIGURE_MEM_SLOTS
        domain.connection.protocol_features = ProtocolFeature.REPLY_ACK
        domain.refused(SetProtocolFeatures(PROTOCOL_FEATURES & offer))
        echo.lines.wait("refused: .*without XEN_MMAP .0x20000.*pip uninstall vhost-xen", level="WARNING")
        # Nothing was negotiated, so nothing is acknowledged.
        domain.connection.protocol_features = 0
        domain.tell(SetFeatures(domain.value(GetFeatures())))
        domain.tell(SetOwner())
        domain.passing(domain.tell, domain.table())
        echo.lines.wait("refused: SET_MEM_TABLE.*guest memory without XEN_MMAP", level="WARNING")
        assert (frames.calls, gnttab.opened) == ([], 0)
        assert running(domain).request(b"now") == b"won"
        # Taking it back is refused too, and changes nothing.
        domain.refused(SetProtocolFeatures(PROTOCOL_FEATURES & offer))
        domain.connection.protocol_features |= ProtocolFeature.XEN_MMAP
        domain.passing(domain.do, domain.table())
