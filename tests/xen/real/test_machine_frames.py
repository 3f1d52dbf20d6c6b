# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Which machine frames a PV domain's memory consists of, as its own table says, by libxenguest."""

import ctypes
import errno

import pytest

from pyxenctrl import PAGE_SIZE, ForeignMemory, Protection
from pyxenctrl.control import Control
from pyxenctrl.domain import DomainKind
from pyxenctrl.guest import NO_FRAME, machine_frames

from .puppet import Puppet

BOTH = Protection.READ | Protection.WRITE
NOBODY = 0x7000  # no domain is numbered so high here


def test_machine_frames_of_a_pv_domain(control: Control, pv: Puppet) -> None:
    with machine_frames(control, pv.domid) as table, ForeignMemory() as memory:
        assert len(table) > pv.pages
        assert tuple(table.lookup(0, pv.pages)) == pv.frames
        assert table[17] == pv.frames[17]
        pv.memory[17 * PAGE_SIZE] = 0x5A
        with memory.map(pv.domid, table.lookup(17, 1), Protection.READ) as mapping:
            assert ctypes.string_at(mapping.address, 1) == b"\x5a"
        # The table is the guest's own, as it is now.
        with memory.map(pv.domid, [table[pv.pages]], BOTH) as entries:
            ctypes.c_uint64.from_address(entries.address + 17 * 8).value = NO_FRAME
        assert table.lookup(16, 3).tolist() == [pv.frames[16], NO_FRAME, pv.frames[18]]
        for first, count in ((0, len(table) + 1), (len(table), 1), (-1, 1), (0, -1)):
            with pytest.raises(IndexError, match="of a table of"):
                table.lookup(first, count)
    with pytest.raises(OSError, match="P2m is closed"):
        table[0]


def test_a_table_holds_the_control_handle_open(pv: Puppet) -> None:
    control = Control()
    with machine_frames(control, pv.domid) as table:
        control.close()
        assert table[0] == pv.frames[0]
        with pytest.raises(OSError, match="Control is closed"):
            control.info(pv.domid)
    assert control._pointer is None


def test_a_large_table(control: Control) -> None:
    with Puppet(control, DomainKind.PV, 1200) as large, machine_frames(control, large.domid) as table:
        assert tuple(table.lookup(0, 1200)) == large.frames


def test_domains_without_a_table(control: Control, hvm: Puppet) -> None:
    with pytest.raises(OSError, match=f"domain {hvm.domid} is not PV") as refused:
        machine_frames(control, hvm.domid)
    assert refused.value.errno == errno.EINVAL
    silent = control.create_domain(DomainKind.PV)
    try:
        with pytest.raises(OSError, match=f"cannot map the table of machine frames of domain {silent}"):
            machine_frames(control, silent)
    finally:
        control.destroy(silent)


def test_no_domain_has_no_table(control: Control) -> None:
    with pytest.raises(ProcessLookupError, match=f"machine frames of domain {NOBODY}"):
        machine_frames(control, NOBODY)
