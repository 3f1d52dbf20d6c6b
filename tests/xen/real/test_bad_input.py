# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Memory that a front-end describes wrongly, and memory that is not there: refused in words."""

import os
import socket
import struct
from typing import NamedTuple

import pytest

from pyxenctrl import ForeignMemory, Protection
from pyxenctrl.control import Control
from pyxenctrl.domain import DomainKind
from pyxenctrl.guest import NO_FRAME, machine_frames
from vhost.errors import RefusedError
from vhost.io import send_fds
from vhost.protocol import MemoryRegion, ProtocolFeature, VirtioFeature

from .conftest import gone_at_the_end
from .driver import Driver
from .frontend import FOREIGN, GRANT, GRANT_BIT, NO_ADVANCE, NO_ADVANCE_8
from .guest import Guest
from .puppet import Puppet, view
from .watch import SECONDS, Watch

pytestmark = pytest.mark.timeout(300)

PAGE = 4096
NO_DOMAIN = 0x7FE0
HOLE = 100  # a page
GET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_PROTOCOL_FEATURES, NEED_REPLY = 1, 3, 5, 16, 1 << 3


class Bad(NamedTuple):
    """A region that is refused: one of this kind with so many pages, but for the changes."""

    flags: int
    changes: dict[str, int]
    why: str


BAD = {
    "foreign, no such domain": Bad(FOREIGN, {"domid": NO_DOMAIN}, f"there is no domain {NO_DOMAIN}"),
    "in advance, no such domain": Bad(GRANT, {"domid": NO_DOMAIN}, f"cannot map .* of domain {NO_DOMAIN} "),
    "foreign, reserved domain": Bad(FOREIGN, {"domid": 0x7FF0}, "no such domain, numbers end at 0x7fef"),
    "in advance, reserved domain": Bad(GRANT, {"domid": 0x7FF1}, "no such domain"),
    "on demand, reserved domain": Bad(GRANT | NO_ADVANCE, {"domid": 0x7FFF}, "no such domain"),
    "domain of 32 bits": Bad(FOREIGN, {"domid": 0xFFFF_FFFF}, "no such domain"),
    "foreign and grant": Bad(FOREIGN, {"xen_flags": FOREIGN | GRANT}, "FOREIGN goes with neither GRANT nor"),
    "foreign on demand": Bad(FOREIGN, {"xen_flags": FOREIGN | NO_ADVANCE}, "FOREIGN goes with neither"),
    "foreign on demand, 8": Bad(FOREIGN, {"xen_flags": FOREIGN | NO_ADVANCE_8}, "FOREIGN goes with neither"),
    "unknown flag": Bad(GRANT, {"xen_flags": GRANT | 0x4}, "unknown flags 0x4"),
    "unknown flags": Bad(FOREIGN, {"xen_flags": FOREIGN | 0x8000_0010}, "unknown flags 0x80000010"),
    "no flags": Bad(FOREIGN, {"xen_flags": 0}, "neither FOREIGN nor GRANT.*pip uninstall vhost-xen"),
    "only not in advance": Bad(GRANT, {"xen_flags": NO_ADVANCE}, "neither FOREIGN nor GRANT"),
    "unaligned": Bad(FOREIGN, {"guest_addr": 0x10}, "must be whole pages of 4096 bytes"),
    "part of a page": Bad(FOREIGN, {"size": PAGE + 1}, "must be whole pages of 4096 bytes"),
    "frames that are not there": Bad(
        FOREIGN,
        {"guest_addr": 0xFF000, "size": 12 * PAGE},  # the first one is
        r"11 of 12 frames cannot be mapped: 0x100 \(Invalid argument\), .*, 0x107 \(.*\) and 3 more",
    ),
    "no frames at all": Bad(FOREIGN, {"guest_addr": (1 << 52) - PAGE, "size": PAGE}, "0xffffffffff "),
    "too many frames": Bad(
        FOREIGN, {"size": (1 << 38) + PAGE}, "a foreign region can have 0x4000000000 bytes"
    ),
    "no bit 63": Bad(GRANT, {"guest_addr": 16 * PAGE}, "addresses of grants have bit 63 set"),
    "no bit 63, on demand": Bad(GRANT | NO_ADVANCE, {"guest_addr": 0x4000}, "bit 63"),
    "a reference that is not granted": Bad(
        GRANT,
        {"guest_addr": GRANT_BIT | 7 << 12, "size": PAGE},
        "cannot map 1 grants .* from reference 0x7 on",
    ),
    "more than was granted": Bad(
        GRANT, {"size": 256 * PAGE}, "cannot map 256 grants .*did not grant them so"
    ),
    "more than there are references": Bad(
        GRANT,
        {"guest_addr": GRANT_BIT | 0xFFFF_FFFF << 12, "size": 2 * PAGE},
        "grant references end at 0xffffffff, this would need 0x100000000",
    ),
    "more than the kernel maps": Bad(GRANT, {"size": PAGE * 65537}, "more than 65536 grants"),
    "all there could be": Bad(
        GRANT, {"guest_addr": GRANT_BIT, "user_addr": 0, "size": 1 << 63}, "grant references end at"
    ),
}


def expect_as_before(watch: Watch) -> None:
    """Nothing is mapped, and no descriptor is left but the connection's."""
    assert watch.pages == 0
    opened = watch.opened()
    assert opened == {"socket": 1}, opened


def expect_service(guest: Guest) -> None:
    """The session can go on, in order."""
    driver = guest.driver
    guest.frontend.share(driver.regions())
    guest.frontend.start(driver.place)
    assert any(guest.request([], [PAGE]))


def refuse(guest: Guest, watch: Watch, region: MemoryRegion, why: str) -> None:
    """Has a region refused, as memory and as an addition to memory."""
    with pytest.raises(RefusedError, match="SET_MEM_TABLE"):
        guest.frontend.share([region])
    watch.complaint(f"rng: refused: SET_MEM_TABLE.*: .*{why}")
    expect_as_before(watch)
    with pytest.raises(RefusedError, match="ADD_MEM_REG"):
        guest.add(region)
    watch.complaint(f"rng: refused: ADD_MEM_REG.*: .*{why}")
    expect_as_before(watch)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_regions_that_are_refused(rng: Watch, hvm: Puppet, bad: Bad) -> None:
    driver = Driver(hvm, bad.flags)
    region = driver.region(0, driver.pages) if bad.flags != GRANT else driver.region(0, driver.readable)
    with Guest(rng.socket, driver) as guest:
        refuse(guest, rng, region._replace(**bad.changes), bad.why)
        expect_service(guest)
        assert hvm.grants_in_use() != [] or bad.flags == FOREIGN
    rng.settle()
    with Guest(rng.socket, Driver(hvm, bad.flags)) as guest:
        expect_service(guest)


def test_a_good_region_is_not_kept_for_the_sake_of_a_bad_one(rng: Watch, hvm: Puppet) -> None:
    driver = Driver(hvm, GRANT)
    good = driver.regions()
    bad = driver.region(driver.pages, driver.pages + 1)._replace(xen_flags=FOREIGN | GRANT)
    with Guest(rng.socket, driver) as guest:
        with pytest.raises(RefusedError):
            guest.frontend.share([*good, bad])
        rng.complaint("FOREIGN goes with neither")
        expect_as_before(rng)
        assert hvm.grants_in_use() == []
        expect_service(guest)
        # The memory there is stays, and the ring goes on.
        with pytest.raises(RefusedError):
            guest.frontend.share([bad])
        rng.complaint("FOREIGN goes with neither")
        assert any(guest.request([], [PAGE]))


def test_a_hole_in_the_memory_of_a_domain(rng: Watch, control: Control, hvm: Puppet) -> None:
    control.decrease_reservation(hvm.domid, [HOLE, HOLE + 2])
    driver = Driver(hvm, FOREIGN, slots=16)
    why = rf"2 of 256 frames cannot be mapped: {HOLE:#x} \(Invalid argument\), {HOLE + 2:#x} \(Invalid"
    with Guest(rng.socket, driver) as guest:
        refuse(guest, rng, driver.region(0, 256), why)
        refuse(guest, rng, driver.region(HOLE, HOLE + 1), f"1 of 1 frames cannot be mapped: {HOLE:#x} ")
        expect_service(guest)


def test_frames_that_a_pv_domain_does_not_say(rng: Watch, control: Control, pv: Puppet) -> None:
    """It says itself which machine frames it has, and may say what it likes."""
    driver = Driver(pv, FOREIGN, slots=16)
    with (
        gone_at_the_end(control, Puppet(control, DomainKind.PV, 16)) as another,
        ForeignMemory() as foreign,
        machine_frames(control, pv.domid) as table,
        foreign.map(pv.domid, [table[pv.pages]], Protection.READ | Protection.WRITE) as mapping,
        Guest(rng.socket, driver) as guest,
    ):
        listing = view(mapping).cast("Q")  # the page after those for tests begins with the frame of page 0
        assert listing[:16].tolist() == list(pv.frames[:16])
        beyond = driver.region(len(table) - 1, len(table) + 1)
        refuse(guest, rng, beyond, f"machine frames of PV domain {pv.domid}: .*a table of {len(table):#x}")
        for lie in (NO_FRAME, another.frames[3], 0, 1 << 45):
            listing[HOLE] = lie
            refuse(guest, rng, driver.region(0, 256), f"1 of 256 frames cannot be mapped: {HOLE:#x} ")
        expect_service(guest)
        listing.release()


def test_domains_that_are_not_there_show_when_the_ring_starts(rng: Watch, hvm: Puppet) -> None:
    """Nothing of memory on demand is looked at before."""
    driver = Driver(hvm, GRANT | NO_ADVANCE)
    with Guest(rng.socket, driver) as guest:
        guest.frontend.share([region._replace(domid=NO_DOMAIN) for region in driver.regions()])
        with pytest.raises(RefusedError, match="SET_VRING_KICK"):
            guest.frontend.start(driver.place)
        rng.complaint(f"rng: refused: SET_VRING_KICK.*cannot map 1 grants of domain {NO_DOMAIN} ")
        assert rng.pages == 0
        expect_service(guest)


def test_memory_without_xen_mmap(rng: Watch, hvm: Puppet) -> None:
    """The descriptions of such regions have neither flags nor a domain."""
    with socket.socket(socket.AF_UNIX) as sock, open(os.devnull, "r+b") as null:
        sock.settimeout(SECONDS)
        sock.connect(str(rng.socket))

        def send(request: int, payload: bytes, *fds: int, flags: int = 1) -> None:
            send_fds(sock, struct.pack("=III", request, flags, len(payload)) + payload, fds)

        def answer() -> int:
            return int.from_bytes(sock.recv(20, socket.MSG_WAITALL)[12:], "little")

        send(SET_PROTOCOL_FEATURES, struct.pack("=Q", ProtocolFeature.REPLY_ACK), flags=1 | NEED_REPLY)
        assert answer() != 0
        rng.complaint("rng: refused: SET_PROTOCOL_FEATURES.*without XEN_MMAP .*pip uninstall vhost-xen")
        send(SET_OWNER, b"")
        send(SET_MEM_TABLE, struct.pack("=IIQQQQ", 1, 0, 0, 64 * PAGE, 0, 0), null.fileno())
        rng.complaint("rng: refused: SET_MEM_TABLE.*guest memory without XEN_MMAP")
        send(GET_FEATURES, b"")
        assert answer() & VirtioFeature.VERSION_1
        expect_as_before(rng)
    rng.settle()
    with Guest(rng.socket, Driver(hvm, FOREIGN)) as guest:
        expect_service(guest)
