# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What libxenctrl is asked for, and what is made of its answers."""

import errno
import uuid
from typing import Any

import pytest

from pyxenctrl import control
from pyxenctrl.control import Control
from pyxenctrl.domain import DomainInfo, DomainKind, Emulation, ShutdownReason
from pyxenctrl.layouts import DomainInfoRecord


@pytest.fixture
def library(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """libxenctrl of the Xen 4.19 that "runs" here."""
    recorder.functions["xc_version"] = lambda *_: 4 << 16 | 19
    monkeypatch.setattr(control, "running", lambda: (4, 19))
    monkeypatch.setattr(control, "library", lambda _: recorder)
    return recorder


def test_a_hypervisor_that_cannot_be_talked_to(library: Any) -> None:
    library.functions["xc_interface_open"] = lambda *_: 0
    with pytest.raises(OSError, match="privileged Xen domain"):
        Control()


@pytest.mark.parametrize(
    ("kind", "flags", "emulation"), [(DomainKind.PV, 0, Emulation(0)), (DomainKind.HVM, 3, Emulation.PC)]
)
def test_what_a_domain_is_created_with(
    library: Any, kind: DomainKind, flags: int, emulation: Emulation
) -> None:
    made: list[Any] = []

    def create(_: int, domid: Any, wanted: Any) -> int:
        made.append(wanted._obj)
        domid._obj.value = 7
        return 0

    library.functions["xc_domain_create"] = create
    handle = uuid.uuid4()
    with Control() as opened:
        assert (
            opened.create_domain(
                kind, max_vcpus=2, grant_version=2, max_grant_frames=64, emulation=Emulation.PC, handle=handle
            )
            == 7
        )
    (wanted,) = made
    assert (wanted.flags, wanted.emulation_flags, wanted.max_vcpus) == (flags, emulation, 2)
    assert (wanted.grant_opts, wanted.max_grant_frames, wanted.max_maptrack_frames) == (2, 64, -1)
    assert bytes(wanted.handle) == handle.bytes


def test_memory_is_limited_in_kib(library: Any) -> None:
    with Control() as opened:
        opened.set_max_memory(7, 256)
    assert ("xc_domain_setmaxmem", 1, 7, 1024) in library.calls


def test_frames_come_back_from_the_hypervisor(library: Any) -> None:
    def populate(_: int, domid: int, count: int, order: int, flags: int, frames: Any) -> int:
        assert (domid, count, order, flags) == (7, 3, 0, 0)
        frames[:] = [frame + 0x1000 for frame in frames]
        return 0

    library.functions["xc_domain_populate_physmap_exact"] = populate
    with Control() as opened:
        assert opened.populate_physmap(7, range(3)).tolist() == [0x1000, 0x1001, 0x1002]


def fill(*domids: int) -> Any:
    """A function that lists these domains, whichever is asked for first."""

    def getinfolist(_: int, first: int, limit: int, records: Any) -> int:
        found = [domid for domid in domids if domid >= first][:limit]
        for record, domid in zip(records, found, strict=False):
            record.domain, record.flags = domid, 0b10 if domid else 0
        return len(found)

    return getinfolist


def test_a_list_of_domains_is_read_to_its_end(library: Any) -> None:
    library.functions["xc_domain_getinfolist"] = fill(*range(0, 1200, 2))
    with Control() as opened:
        assert [domain.domid for domain in opened.domains()] == [*range(0, 1200, 2)]
        found = opened.info(4)
        assert found is not None
        assert (found.domid, found.kind) == (4, DomainKind.HVM)
        assert opened.info(5) is None, "the hypervisor tells of the next"
        assert opened.info(1199) is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (0, {"kind": DomainKind.PV, "shutdown": None}),
        (1, {"dying": True}),
        (1 << 1, {"kind": DomainKind.HVM}),
        (1 << 2 | ShutdownReason.CRASH << 16, {"shutdown": ShutdownReason.CRASH, "running": False}),
        (ShutdownReason.CRASH << 16, {"shutdown": None}),
        (1 << 3, {"paused": True}),
        (1 << 4, {"blocked": True}),
        (1 << 5, {"running": True}),
    ],
)
def test_flags_of_a_domain(flags: int, expected: dict[str, object]) -> None:
    info = DomainInfo.from_record(DomainInfoRecord(flags=flags))
    assert {name: getattr(info, name) for name in expected} == expected
    others = {"dying", "paused", "blocked", "running"} - set(expected)
    assert not any(getattr(info, name) for name in others)


@pytest.mark.parametrize("name", ["populate_physmap", "decrease_reservation"])
def test_frames_of_no_domain(library: Any, name: str) -> None:
    library.fails(f"xc_domain_{name}_exact", errno.EBUSY)
    library.functions["xc_domain_getinfolist"] = fill(0, 7)
    with Control() as opened:
        with pytest.raises(ProcessLookupError, match=r"1 frames .* domain 6: No such process"):
            getattr(opened, name)(6, [1])
        with pytest.raises(OSError, match=r"1 frames .* domain 7: Device or resource busy"):
            getattr(opened, name)(7, [1])


def test_a_context_is_as_long_as_the_hypervisor_says(library: Any) -> None:
    def getcontext(_: int, domid: int, context: Any, size: int) -> int:
        if context is None:
            return 8
        context[:5] = b"state"
        return 5

    library.functions["xc_domain_hvm_getcontext"] = getcontext
    with Control() as opened:
        assert opened.hvm_context(7) == b"state"
        opened.set_hvm_context(7, b"state")
    assert ("xc_domain_hvm_setcontext", 1, 7, b"state", 5) in library.calls


def test_a_closed_handle(library: Any) -> None:
    opened = Control()
    opened.close()
    opened.close()
    with pytest.raises(OSError, match="Control is closed") as error:
        opened.pause(7)
    assert error.value.errno == errno.EBADF
    assert library.names().count("xc_interface_close") == 1
