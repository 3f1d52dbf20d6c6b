# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a device model does to a domain besides serving it: interrupts, and which pages were written."""

import ctypes
import errno
import struct

import pytest

from pyxenctrl.control import Control
from pyxenctrl.devicemodel import DeviceModel
from pyxenctrl.domain import DomainKind
from pyxenctrl.layouts import library

from .puppet import Puppet, records, until

NOBODY = 0x7000  # no domain is numbered so high here
ENABLE_LOG_DIRTY = 2  # XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, what a migration begins with
PCI_IRQ_RECORD, ISA_IRQ_RECORD, PCI_LINK_RECORD = 7, 8, 9

RESULT = 0x2000  # where the code below leaves what it has to tell


def test_a_message_interrupts_the_guest(model: DeviceModel, hvm: Puppet) -> None:
    code = bytes.fromhex(
        "c7 05 f0 00 e0 fe ff 01 00 00"  # mov dword [LAPIC + spurious vector], enabled
        "c7 05 04 20 00 00 01 00 00 00"  # mov dword [RESULT + 4], 1
        "fb  f4  eb fd"  # sti; hlt, again and again
    )
    hvm.memory[0x3000:0x300B] = bytes.fromhex("c7 05 00 20 00 00 fe ca 00 00  f4")  # [RESULT] = 0xcafe; hlt
    struct.pack_into("<QQ", hvm.memory, 0x4000, 0, 0x00CF9B000000FFFF)  # descriptors: none, flat code
    struct.pack_into("<HHHH", hvm.memory, 0x5000 + 0x40 * 8, 0x3000, 8, 0x8E00, 0)  # interrupt gate
    hvm.run(code, rsp=0x7000, gdtr_base=0x4000, gdtr_limit=15, idtr_base=0x5000, idtr_limit=0x7FF)
    until(lambda: hvm.word(RESULT + 4) == 1)
    assert not hvm.halted
    model.inject_msi(hvm.domid, 0xFEE00000, 0x40)
    until(lambda: hvm.halted)
    assert hvm.word(RESULT) == 0xCAFE


def test_interrupt_lines(control: Control, model: DeviceModel, pc: Puppet) -> None:
    def lines() -> tuple[int, int, list[int]]:
        found = {kind: content for kind, _, content in records(control.hvm_context(pc.domid))}
        return (
            int.from_bytes(found[ISA_IRQ_RECORD], "little"),
            int.from_bytes(found[PCI_IRQ_RECORD], "little"),
            [*found[PCI_LINK_RECORD][:4]],
        )

    assert lines() == (0, 0, [0, 0, 0, 0])
    model.set_isa_irq_level(pc.domid, 5, True)
    model.set_pci_intx_level(pc.domid, 0, 0, 3, 1, True)
    model.set_pci_link_route(pc.domid, 2, 11)
    assert lines() == (1 << 5, 1 << 3 * 4 + 1, [0, 0, 11, 0])
    model.set_isa_irq_level(pc.domid, 5, False)
    model.set_pci_intx_level(pc.domid, 0, 0, 3, 1, False)
    model.set_pci_link_route(pc.domid, 2, 0)
    assert lines() == (0, 0, [0, 0, 0, 0])
    for call, arguments in (
        (model.set_isa_irq_level, (16, True)),
        (model.set_pci_intx_level, (0, 0, 32, 0, True)),
        (model.set_pci_intx_level, (0, 1, 3, 0, True)),
        (model.set_pci_link_route, (4, 11)),
        (model.set_pci_link_route, (0, 16)),
    ):
        with pytest.raises(OSError, match=f"of domain {pc.domid}") as refused:
            call(pc.domid, *arguments)
        assert refused.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="cannot set interrupt 40") as unknown:
        model.set_irq_level(pc.domid, 40, True)
    assert unknown.value.errno == errno.EOPNOTSUPP


def test_pages_that_the_guest_wrote(model: DeviceModel, hvm: Puppet) -> None:
    assert model.track_dirty_vram(hvm.domid, 0x10, 20)[:2] == b"\xff\xff"
    assert model.track_dirty_vram(hvm.domid, 0x10, 20) == bytes(3)
    hvm.run(bytes.fromhex("a3 00 10 01 00  a3 00 30 02 00  f4"))  # to 0x11000 and 0x23000
    until(lambda: hvm.halted)
    assert model.track_dirty_vram(hvm.domid, 0x10, 20) == b"\x02\x00\x08"
    assert model.track_dirty_vram(hvm.domid, 0x10, 20) == bytes(3)
    assert model.track_dirty_vram(hvm.domid, 0x10, 0) == b""


def test_pages_that_the_model_wrote(control: Control, model: DeviceModel, hvm: Puppet) -> None:
    track = library(control.version).xc_shadow_control
    track.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint]
    with control._live() as handle:
        assert track(handle, hvm.domid, ENABLE_LOG_DIRTY, None, 0) == 0
    model.modified_memory(hvm.domid, 0x10, 20)
    with pytest.raises(OSError, match="mark 2 frames of domain") as refused:
        model.modified_memory(hvm.domid, 1 << 36, 2)
    assert refused.value.errno == errno.EINVAL


def test_vcpus_are_counted(control: Control, model: DeviceModel) -> None:
    with Puppet(control, DomainKind.HVM, 16, vcpus=3) as puppet:
        assert model.nr_vcpus(puppet.domid) == 3


def test_a_restricted_model_serves_one_domain(control: Control, hvm: Puppet) -> None:
    with Puppet(control, DomainKind.HVM, 16) as other, DeviceModel() as model:
        assert model.nr_vcpus(other.domid) == 1
        model.restrict(hvm.domid)
        assert model.nr_vcpus(hvm.domid) == 1
        with pytest.raises(PermissionError, match=f"of domain {other.domid}"):
            model.nr_vcpus(other.domid)
        with pytest.raises(OSError, match=f"restrict a device model to domain {other.domid}"):
            model.restrict(other.domid)


CALLS = [
    ("create_ioreq_server", ()),
    ("set_isa_irq_level", (5, True)),
    ("set_pci_intx_level", (0, 0, 3, 0, True)),
    ("set_pci_link_route", (0, 5)),
    ("inject_msi", (0xFEE00000, 0x40)),
    ("modified_memory", (0, 1)),
    ("track_dirty_vram", (0, 1)),
    ("nr_vcpus", ()),
]


@pytest.mark.parametrize(("call", "arguments"), CALLS)
def test_there_is_no_such_domain(model: DeviceModel, call: str, arguments: tuple[int, ...]) -> None:
    with pytest.raises(ProcessLookupError, match=rf"cannot .* domain {NOBODY}.*: No such process"):
        getattr(model, call)(NOBODY, *arguments)


@pytest.mark.parametrize(("call", "arguments"), CALLS)
def test_a_pv_domain_has_no_model(
    model: DeviceModel, pv: Puppet, call: str, arguments: tuple[int, ...]
) -> None:
    with pytest.raises(OSError, match=rf"cannot .* domain {pv.domid}") as refused:
        getattr(model, call)(pv.domid, *arguments)
    assert refused.value.errno == errno.EINVAL
