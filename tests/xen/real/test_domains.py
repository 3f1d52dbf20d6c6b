# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Making domains and looking after them by libxenctrl, and the puppets that other tests use."""

import ctypes
import errno
import os
import time
import uuid

import pytest

from pyxenctrl import PAGE_SIZE, ForeignMemory, GrantTable, Protection
from pyxenctrl.control import Control
from pyxenctrl.domain import DomainInfo, DomainKind, Emulation, ShutdownReason
from pyxenctrl.evtchn import EventChannels
from pyxenctrl.layouts import running

from .puppet import CPU_RECORD, Cpu, Puppet, records, until

BOTH = Protection.READ | Protection.WRITE
NOBODY = 0x7000  # no domain is numbered so high here
HVM_PARAM_CALLBACK_IRQ, HVM_PARAM_STORE_PFN = 0, 1
EVENTS_PENDING = 32 * 64  # in struct shared_info

FOREVER = bytes.fromhex("eb fe")  # jmp to itself
COUNT = bytes.fromhex("b8 34 12 00 00  a3 00 20 00 00")  # mov eax, 0x1234; mov [0x2000], eax
HALT = bytes.fromhex("f4")


def info(control: Control, domid: int) -> DomainInfo:
    """What is known of a domain, which must be there."""
    found = control.info(domid)
    assert found is not None
    return found


def test_the_version_is_that_of_the_xen_that_runs(control: Control) -> None:
    assert control.version == running()


@pytest.mark.parametrize("kind", DomainKind)
def test_a_domain_is_made_and_destroyed(control: Control, kind: DomainKind) -> None:
    before = [domain.domid for domain in control.domains()]
    assert before[0] == 0
    handle = uuid.uuid4()
    domid = control.create_domain(kind, max_vcpus=2, handle=handle)
    try:
        made = info(control, domid)
        assert (made.domid, made.kind, made.handle, made.pages) == (domid, kind, handle, 0)
        assert (made.paused, made.dying, made.shutdown, made.running) == (True, False, None, False)
        assert made.emulation == (Emulation.PVH if kind is DomainKind.HVM else Emulation(0))
        assert [domain.domid for domain in control.domains()] == sorted([*before, domid])
    finally:
        control.destroy(domid)
    until(lambda: control.info(domid) is None)
    assert [domain.domid for domain in control.domains()] == before


def test_what_cannot_be_made_is_refused(control: Control) -> None:
    before = control.domains()
    for wrong in ({"grant_version": 9}, {"max_vcpus": 0}, {"emulation": Emulation.PIC}):
        with pytest.raises(OSError, match="cannot create a domain of the kind HVM: ") as refused:
            control.create_domain(DomainKind.HVM, **wrong)
        assert refused.value.errno in (errno.EINVAL, errno.EOPNOTSUPP)
    assert [domain.domid for domain in control.domains()] == [domain.domid for domain in before]


def test_memory_is_given_and_taken(control: Control, puppet: Puppet) -> None:
    before = info(control, puppet.domid)
    control.set_max_memory(puppet.domid, before.pages + 4)
    new = range(0x1000, 0x1004)
    frames = control.populate_physmap(puppet.domid, new)
    assert info(control, puppet.domid).pages == before.pages + 4
    # Xen tells a PV domain's machine frames; of an HVM domain nobody sees them.
    assert (list(frames) == list(new)) == (puppet.kind is DomainKind.HVM)
    assert not set(frames) & set(puppet.frames)
    with pytest.raises(OSError, match=f"cannot populate 1 frames of domain {puppet.domid}") as full:
        control.populate_physmap(puppet.domid, [0x1004])
    assert full.value.errno == errno.EBUSY
    control.decrease_reservation(puppet.domid, frames)
    assert info(control, puppet.domid).pages == before.pages
    with pytest.raises(OSError, match="cannot take 4 frames") as gone:
        control.decrease_reservation(puppet.domid, frames)
    assert gone.value.errno == errno.EINVAL
    assert control.info(puppet.domid) is not None


def test_pauses_are_counted(control: Control, hvm: Puppet) -> None:
    hvm.run(FOREVER)
    until(lambda: info(control, hvm.domid).cpu_time > 0)
    assert info(control, hvm.domid).vcpus == 1
    control.pause(hvm.domid)
    control.pause(hvm.domid)
    control.unpause(hvm.domid)
    stopped = info(control, hvm.domid)
    assert stopped.paused
    time.sleep(0.2)
    assert info(control, hvm.domid).cpu_time == stopped.cpu_time
    control.unpause(hvm.domid)
    assert not info(control, hvm.domid).paused
    until(lambda: info(control, hvm.domid).cpu_time > stopped.cpu_time)


def test_a_domain_is_shut_down_for_a_reason(control: Control, puppet: Puppet) -> None:
    control.shutdown(puppet.domid, ShutdownReason.CRASH)
    assert info(control, puppet.domid).shutdown == ShutdownReason.CRASH


def test_a_puppets_code_runs_to_its_end(control: Control, hvm: Puppet) -> None:
    assert not hvm.halted
    hvm.run(COUNT + HALT, at=0x5000)
    until(lambda: hvm.halted)
    assert hvm.memory[0x2000:0x2004] == b"\x34\x12\0\0"
    assert info(control, hvm.domid).shutdown == ShutdownReason.POWEROFF


def test_registers_are_read_and_written(control: Control, hvm: Puppet) -> None:
    hvm.memory[0x5000:0x5001] = HALT
    hvm.run(COUNT + FOREVER, rbx=0x77)
    until(lambda: hvm.memory[0x2000] != 0)
    control.pause(hvm.domid)
    context = control.hvm_context(hvm.domid)
    (found,) = (content for kind, _, content in records(context) if kind == CPU_RECORD)
    cpu = Cpu.from_buffer_copy(found)
    assert (cpu.rax, cpu.rbx, cpu.rip) == (0x1234, 0x77, PAGE_SIZE + len(COUNT))
    cpu.rip = 0x5000
    control.set_hvm_context(hvm.domid, context.replace(found, bytes(cpu)))
    control.unpause(hvm.domid)
    until(lambda: hvm.halted)


def test_a_context_that_is_none_is_refused(control: Control, hvm: Puppet, pv: Puppet) -> None:
    with pytest.raises(OSError, match="cannot set the context"):
        control.set_hvm_context(hvm.domid, b"nonsense" * 8)
    with pytest.raises(OSError, match="cannot read the context") as refused:
        control.hvm_context(pv.domid)
    assert refused.value.errno == errno.EINVAL


def test_parameters_are_kept(control: Control, hvm: Puppet) -> None:
    control.set_hvm_param(hvm.domid, HVM_PARAM_STORE_PFN, 0xFEFFC)
    assert control.hvm_param(hvm.domid, HVM_PARAM_STORE_PFN) == 0xFEFFC
    assert control.hvm_param(hvm.domid, HVM_PARAM_CALLBACK_IRQ) == 0
    with pytest.raises(OSError, match="HVM parameter 4096") as refused:
        control.hvm_param(hvm.domid, 4096)
    assert refused.value.errno == errno.EINVAL


def test_a_port_of_a_domain_is_bound(control: Control, pv: Puppet) -> None:
    port = control.alloc_unbound_port(pv.domid, 0)
    others = control.alloc_unbound_port(pv.domid, pv.domid)
    shared = info(control, pv.domid).shared_info_frame
    with EventChannels() as channels, ForeignMemory() as memory:
        bound = channels.bind_interdomain(pv.domid, port)
        with memory.map(pv.domid, [shared], Protection.READ) as mapping:
            pending = ctypes.c_uint64.from_address(mapping.address + EVENTS_PENDING)
            before = pending.value
            channels.notify(bound)
            assert pending.value == before | 1 << port
        with pytest.raises(OSError, match=f"port {others} of domain {pv.domid}") as refused:
            channels.bind_interdomain(pv.domid, others)
        assert refused.value.errno == errno.EINVAL


def test_what_is_mapped_outlives_its_domain(control: Control, puppet: Puppet) -> None:
    with ForeignMemory() as memory:
        with memory.map(puppet.domid, puppet.frames[:1], BOTH) as mapping:
            puppet.close()
            assert info(control, puppet.domid).dying
            ctypes.memset(mapping.address, 1, PAGE_SIZE)
        until(lambda: control.info(puppet.domid) is None)


def test_grants_are_seen_from_the_guests_side(puppet: Puppet) -> None:
    puppet.grant(8, 3)
    puppet.grant(2047, 4, read_only=True)
    puppet.memory[3 * PAGE_SIZE :][:5] = b"three"
    with GrantTable() as table:
        with table.map_domain_grant_refs(puppet.domid, [8], BOTH) as mapping:
            assert ctypes.string_at(mapping.address, 5) == b"three"
            assert (puppet.in_use(8), puppet.in_use(2047)) == (True, False)
            with table.map_grant_ref(puppet.domid, 2047, Protection.READ):
                assert puppet.grants_in_use() == [8, 2047]
            with pytest.raises(OSError, match="grant 8 of domain") as busy:
                puppet.revoke(8)
            assert busy.value.errno == errno.EBUSY
        assert puppet.grants_in_use() == []
        with pytest.raises(OSError, match="writable"):
            table.map_grant_ref(puppet.domid, 2047, BOTH)
        puppet.revoke(8)
        with pytest.raises(OSError, match="reference 0x8") as revoked:
            table.map_grant_ref(puppet.domid, 8, Protection.READ)
        assert revoked.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("max_vcpus", (1,)),
        ("set_max_memory", (1,)),
        ("populate_physmap", ([1],)),
        ("decrease_reservation", ([1],)),
        ("pause", ()),
        ("unpause", ()),
        ("shutdown", (0,)),
        ("destroy", ()),
        ("hvm_context", ()),
        ("set_hvm_context", (b"",)),
        ("hvm_param", (1,)),
        ("set_hvm_param", (1, 1)),
        ("alloc_unbound_port", (0,)),
    ],
)
def test_there_is_no_such_domain(control: Control, call: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(ProcessLookupError) as missing:
        getattr(control, call)(NOBODY, *arguments)
    assert str(missing.value).startswith(f"[Errno {errno.ESRCH}] cannot ")
    assert f"domain {NOBODY}" in str(missing.value)
    assert str(missing.value).endswith(os.strerror(errno.ESRCH))


def test_nothing_is_known_of_no_domain(control: Control) -> None:
    assert control.info(NOBODY) is None
