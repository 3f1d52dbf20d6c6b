# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Tables of machine frames of guests that are 64 and 32 bits wide, and what keeps them mapped."""

import ctypes
import errno
from array import array
from typing import Any

import pytest

from pyxenctrl import control, guest
from pyxenctrl.control import Control
from pyxenctrl.guest import NO_FRAME, machine_frames

HVM = 1 << 1
PV_DOMAIN, HVM_DOMAIN = 7, 8


@pytest.fixture
def library(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """libxenctrl and libxenguest, of a Xen with a PV and an HVM domain."""

    def getinfolist(_: int, first: int, limit: int, records: Any) -> int:
        if first > HVM_DOMAIN:
            return 0
        records[0].domain = max(first, PV_DOMAIN)
        records[0].flags = HVM if first == HVM_DOMAIN else 0
        return 1

    recorder.functions["xc_version"] = lambda *_: 4 << 16 | 17
    recorder.functions["xc_domain_getinfolist"] = getinfolist
    monkeypatch.setattr(control, "running", lambda: (4, 17))
    monkeypatch.setattr(control, "library", lambda _: recorder)
    monkeypatch.setattr(guest, "library", lambda _: recorder)
    return recorder


@pytest.fixture(params=[8, 4], ids=["64 bits", "32 bits"])
def entries(library: Any, request: pytest.FixtureRequest) -> Any:
    """The table that the PV domain has."""
    width = request.param
    kind = ctypes.c_uint64 if width == 8 else ctypes.c_uint32
    table = (kind * 1030)(*range(0x1000, 0x1000 + 1030))

    def map_meminfo(handle: int, domid: int, info: Any) -> int:
        assert (handle, domid) == (1, PV_DOMAIN)
        info.guest_width, info.p2m_size = width, len(table)
        info.p2m_table = ctypes.addressof(table)
        return 0

    library.functions["xc_map_domain_meminfo"] = map_meminfo
    return table


def test_the_structure_is_that_of_the_header() -> None:
    assert [(name, getattr(guest._MemoryInfo, name).offset) for name, _ in guest._MemoryInfo._fields_] == [
        ("pt_levels", 0),
        ("guest_width", 4),
        ("pfn_type", 8),
        ("p2m_table", 16),
        ("p2m_size", 24),
        ("p2m_frames", 32),
    ]
    assert ctypes.sizeof(guest._MemoryInfo) == 40


def test_frames_are_looked_up(entries: Any) -> None:
    with Control() as opened, machine_frames(opened, PV_DOMAIN) as table:
        assert len(table) == 1030
        assert (table[0], table[1029]) == (0x1000, 0x1000 + 1029)
        assert table.lookup(500, 3) == array("Q", [0x1000 + 500, 0x1000 + 501, 0x1000 + 502])
        assert table.lookup(1030, 0) == array("Q")
        entries[501] = -1
        assert table.lookup(500, 3) == array("Q", [0x1000 + 500, NO_FRAME, 0x1000 + 502])
        for first, count in ((1030, 1), (1029, 2), (-1, 1), (3, -1)):
            with pytest.raises(IndexError, match="of a table of 0x406"):
                table.lookup(first, count)


def test_a_table_is_unmapped_once_and_then_the_control_handle_closed(library: Any, entries: Any) -> None:
    opened = Control()
    table = machine_frames(opened, PV_DOMAIN)
    opened.close()
    assert "xc_interface_close" not in library.names()
    table.close()
    table.close()
    assert library.names() == ["xc_unmap_domain_meminfo", "xc_interface_close"]
    with pytest.raises(OSError, match="P2m is closed"):
        table[0]


def test_what_has_no_table(library: Any) -> None:
    library.fails("xc_map_domain_meminfo", errno.EINVAL)
    with Control() as opened:
        with pytest.raises(ProcessLookupError, match="machine frames of domain 99: No such process"):
            machine_frames(opened, 99)
        with pytest.raises(ProcessLookupError, match="machine frames of domain 3"):
            machine_frames(opened, 3)
        with pytest.raises(OSError, match="domain 8 is not PV"):
            machine_frames(opened, HVM_DOMAIN)
        with pytest.raises(OSError, match="table of machine frames of domain 7: Invalid argument"):
            machine_frames(opened, PV_DOMAIN)
    assert library.names()[-1] == "xc_interface_close", "nothing is left that holds it open"
