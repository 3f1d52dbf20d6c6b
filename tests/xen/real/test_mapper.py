# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The Xen build's guest memory on a running Xen: what is mapped, what is refused, and what is left."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxenctrl.control import Control
from pyxenctrl.domain import DomainKind
from tests.xen.batch import BIT, Batch
from vhost.errors import GuestMemoryError
from vhost.mem import RegionSpec
from vhost.mem.xen import XenMemory

from .conftest import gone_at_the_end
from .frontend import FOREIGN, GRANT, NO_ADVANCE, NO_ADVANCE_8
from .puppet import Puppet

PAGE = 4096
REF = 32  # the reference of page 0
READ_ONLY = 128  # pages from here on are granted read-only


def mappings() -> list[str]:
    """Lines of /proc/self/maps that are memory of other domains."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if line.endswith(("/dev/xen/gntdev", "/dev/xen/privcmd"))]


@pytest.fixture(autouse=True)
def _nothing_stays(puppet: Puppet) -> Iterator[None]:
    before = mappings()
    yield
    assert mappings() == before
    if puppet.memory:
        assert puppet.grants_in_use() == []


def spec(puppet: Puppet, flags: int, page: int = 0, pages: int = 256) -> RegionSpec:
    gpa = BIT | REF + page << 12 if flags & GRANT else page << 12
    return RegionSpec(gpa, pages * PAGE, gpa, 0, flags, puppet.domid)


def grant_all(puppet: Puppet) -> None:
    for page in range(puppet.pages):
        puppet.grant(REF + page, page, read_only=page >= READ_ONLY)


def memory_of(puppet: Puppet, flags: int, **options: int) -> XenMemory:
    memory = XenMemory(**options)
    memory.replace([(spec(puppet, flags), None)])
    return memory


# ---- foreign ----


def test_a_foreign_region_is_the_domains_memory(puppet: Puppet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhost.mem.foreign.CHUNK", 100)  # 256 pages are three chunks then
    memory = memory_of(puppet, FOREIGN)
    for page in (0, 99, 100, 199, 200, 255):
        puppet.memory[page * PAGE : page * PAGE + 8] = b"page %03d" % page
        with memory.access(page * PAGE, PAGE, write=True) as view:
            assert bytes(view[:8]) == b"page %03d" % page
            view[-1] = page
        assert puppet.memory[page * PAGE + PAGE - 1] == page
    with memory.access(99 * PAGE, 2 * PAGE) as view:
        assert bytes(view[PAGE : PAGE + 8]) == b"page 100", "contiguous across chunks"
    memory.clear()


def test_frames_that_are_not_there_are_named(control: Control, puppet: Puppet) -> None:
    before = len(mappings())
    beyond = 1 << 20
    with pytest.raises(GuestMemoryError) as caught:
        XenMemory().replace([(spec(puppet, FOREIGN, page=beyond, pages=3), None)])
    if puppet.kind is DomainKind.HVM:
        assert "3 of 3 frames cannot be mapped: 0x100000 (Invalid argument), 0x100001" in str(caught.value)
        control.decrease_reservation(puppet.domid, [7])
        with pytest.raises(GuestMemoryError, match=r"1 of 16 frames cannot be mapped: 0x7 \("):
            XenMemory().replace([(spec(puppet, FOREIGN, pages=16), None)])
    else:
        assert f"machine frames of PV domain {puppet.domid}: frames 0x100000 to 0x100003" in str(caught.value)
    assert len(mappings()) == before, "also while the exception is held"


def test_domains_that_do_not_exist(puppet: Puppet) -> None:
    for domid, words in ((puppet.domid + 1000, "there is no domain"), (0x7FF0, "no such domain")):
        gone = RegionSpec(0, PAGE, 0, 0, FOREIGN, domid)
        with pytest.raises(GuestMemoryError, match=words):
            XenMemory().replace([(gone, None)])
        grants = RegionSpec(BIT | REF << 12, PAGE, 0, 0, GRANT, domid)
        with pytest.raises(GuestMemoryError, match=r"no such domain|grants cannot be used"):
            XenMemory().replace([(grants, None)])


def test_foreign_memory_outlives_its_domain(control: Control) -> None:
    with gone_at_the_end(control, Puppet(control, DomainKind.HVM, 16)) as puppet:
        memory = XenMemory()
        memory.replace([(spec(puppet, FOREIGN, pages=16), None)])
        puppet.memory[:4] = b"last"
        puppet.close()
        with memory.access(0, 4, write=True) as view:
            assert bytes(view) == b"last"
            view[0] = 0
        with pytest.raises(GuestMemoryError):
            memory.add(spec(puppet, FOREIGN, page=64, pages=1), None)
        memory.clear()


# ---- grants in advance, rings, single accesses ----


def test_grants_in_advance(puppet: Puppet) -> None:
    grant_all(puppet)
    memory = XenMemory()
    memory.replace(
        [
            (spec(puppet, GRANT, 0, READ_ONLY), None),
            (spec(puppet, GRANT, READ_ONLY, 256 - READ_ONLY), None),
        ]
    )
    assert len(puppet.grants_in_use()) == 256
    assert [region.writable for region in memory.table.regions] == [True, False]
    with memory.access(BIT | REF << 12, 16 * PAGE, write=True) as view:
        view[15 * PAGE : 15 * PAGE + 5] = b"write"
    assert bytes(puppet.memory[15 * PAGE : 15 * PAGE + 5]) == b"write"
    with pytest.raises(GuestMemoryError, match="cannot be written"):
        memory.access(BIT | REF + READ_ONLY << 12, 1, write=True)
    memory.clear()
    assert puppet.grants_in_use() == []


@pytest.mark.parametrize("pages", [1, 3])
def test_a_bad_reference_in_advance_maps_nothing(puppet: Puppet, pages: int) -> None:
    puppet.grant(REF, 0)
    puppet.grant(REF + 2, 2)
    with pytest.raises(GuestMemoryError, match=f"{pages} grants of domain {puppet.domid} from reference"):
        XenMemory().replace([(spec(puppet, GRANT, 3 - pages if pages == 3 else 1, pages), None)])
    assert puppet.grants_in_use() == []


@pytest.mark.parametrize("flag", [NO_ADVANCE, NO_ADVANCE_8])
def test_accesses_on_demand(puppet: Puppet, flag: int) -> None:
    grant_all(puppet)
    memory = memory_of(puppet, GRANT | flag)
    assert puppet.grants_in_use() == []
    with memory.access(BIT | (REF + 4 << 12) + 4090, 12, write=True) as view:
        assert puppet.grants_in_use() == [REF + 4, REF + 5]
        view[:] = b"across pages"
    assert bytes(puppet.memory[5 * PAGE - 6 : 5 * PAGE + 6]) == b"across pages"
    assert puppet.grants_in_use() == []
    with memory.access(BIT | REF + READ_ONLY << 12, 4) as view:
        assert bytes(view) == bytes(4)
    with pytest.raises(GuestMemoryError, match="writable: Invalid argument"):
        memory.access(BIT | REF + READ_ONLY << 12, 4, write=True)
    puppet.revoke(REF + 9)
    with pytest.raises(GuestMemoryError, match="took them back"):
        memory.access(BIT | REF + 9 << 12, 4)


@pytest.mark.parametrize(
    ("flags", "n"), [(GRANT | NO_ADVANCE, 100), (GRANT | NO_ADVANCE, 5000), (GRANT, 100)]
)
def test_ring_pages_are_mapped_for_the_life_of_the_ring(puppet: Puppet, flags: int, n: int) -> None:
    for page in range(4):
        puppet.grant(REF + page, page)
    memory = XenMemory()
    memory.replace([(spec(puppet, flags, 0, 4), None)])
    puppet.memory[PAGE : PAGE + 2] = b"\1\1"
    ring = memory.ring(BIT | REF + 1 << 12, n, clear=0)
    memory.clear()
    assert REF + 1 in puppet.grants_in_use()
    ring.view[2] = 7
    assert bytes(puppet.memory[PAGE : PAGE + 3]) == b"\1\1\7"
    ring.close()
    assert puppet.grants_in_use() == []
    assert bytes(puppet.memory[PAGE : PAGE + 3]) == b"\0\1\7", "the kernel has cleared the byte"


# ---- batches ----

WAYS = {
    "default": {},
    "copied": {"copy_each": 1 << 20},
    "mapped": {"copy_each": 0},
    "mapped twice": {"copy_each": 0, "copy_all": 0},
    "kept": {"copy_each": 0, "grant_cache": 64},
}


def at(page: int, offset: int = 0) -> int:
    return (REF + page << 12) + offset


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_batch_reads_and_writes(puppet: Puppet, way: dict[str, int]) -> None:
    grant_all(puppet)
    for page in (130, 131, 140):
        puppet.memory[page * PAGE : (page + 1) * PAGE] = bytes([page]) * PAGE
    puppet.memory[10 * PAGE : 11 * PAGE] = b"\xee" * PAGE
    memory = memory_of(puppet, GRANT | NO_ADVANCE, **way)
    for turn in range(3):
        batch = Batch(
            (at(130, 16), 16, False),
            (at(10), 4096, True),
            (at(130, 4000), 200, False),
            (at(20, 100), 1, True),
            (at(30, 300), 9000, True),
            (at(140), 4096, False),
            domids=(puppet.domid,),
        )
        deferred = batch.reach(memory)
        assert batch.read(0) == b"\x82" * 16
        assert batch.read(2) == b"\x82" * 96 + b"\x83" * 104
        assert batch.read(5) == b"\x8c" * 4096
        batch.write(1, b"turn %04d" % turn * 200)
        batch.write(3, b"\x77")
        batch.write(4, bytes(range(250)) * 36)
        batch.done(deferred)
        assert bytes(puppet.memory[10 * PAGE : 11 * PAGE]) == b"turn %04d" % turn * 200 + b"\xee" * 2296
        assert puppet.memory[20 * PAGE + 100] == 0x77
        assert bytes(puppet.memory[30 * PAGE + 300 :][:9000]) == bytes(range(250)) * 36
        kept = [REF + page for page in (10, 20, 30, 31, 32, 130, 131, 140)] if "grant_cache" in way else []
        assert puppet.grants_in_use() == kept
    if kept:
        with pytest.raises(OSError) as caught:
            puppet.revoke(REF + 10)
        assert caught.value.errno == errno.EBUSY
        memory.ring(BIT | at(0), 16).close()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("bad", ["not granted", "read-only", "revoked"])
def test_a_batch_with_a_bad_piece_leaves_nothing(puppet: Puppet, way: dict[str, int], bad: str) -> None:
    grant_all(puppet)
    memory = memory_of(puppet, GRANT | NO_ADVANCE, **way)
    page = {"not granted": 6, "read-only": READ_ONLY, "revoked": 7}[bad]
    if bad != "read-only":
        puppet.revoke(REF + page)
    batch = Batch(
        *((at(10), 4096, True), (at(page), 4096, True), (at(130), 64, False)), domids=(puppet.domid,)
    )
    with pytest.raises(GuestMemoryError, match="the guest's grants cannot be used"):
        deferred = batch.reach(memory)  # fails here if it is mapped
        batch.write(0, b"good" * 1024)
        batch.write(1, b"bad!" * 1024)
        batch.done(deferred)  # and here if it is copied
    if way is WAYS["copied"]:
        assert bytes(puppet.memory[10 * PAGE : 11 * PAGE]) == b"good" * 1024, "the others arrive"
    memory.ring(BIT | at(0), 16).close()  # what the cache has of the other direction goes with the ring
    assert puppet.grants_in_use() == []


def test_a_batch_of_two_domains(control: Control, puppet: Puppet) -> None:
    with gone_at_the_end(control, Puppet(control, DomainKind.HVM, 16)) as other:
        puppet.grant(REF, 0)
        other.grant(REF + 1, 1)
        puppet.memory[:3], other.memory[PAGE : PAGE + 3] = b"one", b"two"
        for way in WAYS.values():
            memory = XenMemory(**way)
            memory.replace(
                [
                    (spec(puppet, GRANT | NO_ADVANCE, 0, 1), None),
                    (spec(other, GRANT | NO_ADVANCE, 1, 1), None),
                ]
            )
            batch = Batch((at(0), 2000, False), (at(1), 2000, False), domids=(puppet.domid, other.domid))
            with batch.reach(memory):
                assert (batch.read(0)[:3], batch.read(1)[:3]) == (b"one", b"two")
            memory.ring(BIT | at(0), 16).close()
            assert other.grants_in_use() == []


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_domain_that_dies_under_a_batch(control: Control, way: dict[str, int]) -> None:
    with gone_at_the_end(control, Puppet(control, DomainKind.HVM, 64)) as puppet:
        for page in range(64):
            puppet.grant(REF + page, page)
        memory = XenMemory(**way)
        memory.replace([(spec(puppet, GRANT | NO_ADVANCE, 0, 64), None)])
        batch, late = [Batch((at(1), 4096, True), domids=(puppet.domid,)) for _ in range(2)]
        deferred = batch.reach(memory)
        puppet.close()
        batch.write(0, b"last words")
        if way in (WAYS["copied"], WAYS["default"]):
            with pytest.raises(GuestMemoryError, match="cannot copy"):
                batch.done(deferred)
        else:
            batch.done(deferred)
        memory._grants.forget()
        with pytest.raises(GuestMemoryError, match="the guest's grants cannot be used"):
            deferred = late.reach(memory)
            late.write(0, b"too late")
            late.done(deferred)
