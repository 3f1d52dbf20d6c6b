# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A domain without a guest in it: the test is the guest.

It writes the domain's memory, its grant table and the state of its vCPU through the hypervisor. No toolstack,
no store and no kernel take part, so a puppet is made in less than a second. For x86-64.
"""

import ctypes
import errno
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from pyxenctrl import PAGE_SIZE, ForeignMemory, Protection
from pyxenctrl.control import Control
from pyxenctrl.domain import DomainKind, Emulation
from pyxenctrl.foreignmemory import ResourceKind
from pyxenctrl.handle import Mapping

BOTH = Protection.READ | Protection.WRITE

#: Pages of the grant table, and so references that there are.
GRANT_FRAMES = 4
REFERENCES = GRANT_FRAMES * PAGE_SIZE // 8

# An entry of a grant table of version 1: flags u16, domid u16, frame u32.
PERMIT, READ_ONLY, READING, WRITING = 1, 1 << 2, 1 << 3, 1 << 4

# struct shared_info: where a PV guest says how many frames it has, and which frame lists the frames of lists.
MAX_PFN, FRAME_LIST_LIST = 3088, 3096
PER_PAGE = PAGE_SIZE // 8

HEADER_BYTES = 8 + 24  # the first record of an HVM context
END_RECORD, CPU_RECORD = 0, 2

SECONDS = 20  # that anything in a domain may take


class Cpu(ctypes.Structure):
    """``struct hvm_hw_cpu`` of public/arch-x86/hvm/save.h."""

    _SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr")
    _TABLES = (*_SEGMENTS, "idtr", "gdtr")
    _fields_ = [
        ("fpu_regs", ctypes.c_uint8 * 512),
        *((name, ctypes.c_uint64) for name in ("rax", "rbx", "rcx", "rdx", "rbp", "rsi", "rdi", "rsp")),
        *((f"r{number}", ctypes.c_uint64) for number in range(8, 16)),
        *((name, ctypes.c_uint64) for name in ("rip", "rflags", "cr0", "cr2", "cr3", "cr4")),
        *((f"dr{number}", ctypes.c_uint64) for number in (0, 1, 2, 3, 6, 7)),
        *((f"{name}_sel", ctypes.c_uint32) for name in _SEGMENTS),
        *((f"{name}_limit", ctypes.c_uint32) for name in _TABLES),
        *((f"{name}_base", ctypes.c_uint64) for name in _TABLES),
        *((f"{name}_arbytes", ctypes.c_uint32) for name in _SEGMENTS),
        *((name, ctypes.c_uint64) for name in ("sysenter_cs", "sysenter_esp", "sysenter_eip", "shadow_gs")),
        *((f"msr_{name}", ctypes.c_uint64) for name in ("flags", "lstar", "star", "cstar", "syscall_mask")),
        *((name, ctypes.c_uint64) for name in ("msr_efer", "msr_tsc_aux", "tsc")),
        *((name, ctypes.c_uint32) for name in ("pending_event", "error_code", "flags", "pad0")),
    ]


def until(condition: Callable[[], bool]) -> None:
    """Waits for something that happens in a domain."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def records(context: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The records of an HVM context: type, instance, content."""
    at, kind = 0, -1
    while kind != END_RECORD:
        kind, instance, size = struct.unpack_from("<HHI", context, at)
        yield kind, instance, context[at + 8 :][:size]
        at += 8 + size


def view(mapping: Mapping) -> memoryview:
    """What is mapped, for as long as it is."""
    return memoryview((ctypes.c_ubyte * mapping.size).from_address(mapping.address)).cast("B")


class Puppet:
    """A domain of `pages` pages, paused; it is gone when closed. Frame i of the guest's own is page i."""

    def __init__(
        self,
        control: Control,
        kind: DomainKind,
        pages: int = 256,
        *,
        vcpus: int = 1,
        emulation: Emulation = Emulation.PVH,
    ) -> None:
        self.control: Final = control
        self.kind: Final = kind
        self.pages: Final = pages
        self.domid: Final = control.create_domain(kind, max_vcpus=vcpus, emulation=emulation)
        with ExitStack() as stack:
            stack.callback(control.destroy, self.domid)
            control.max_vcpus(self.domid, vcpus)
            # A PV guest keeps the list of its machine frames itself, in pages behind those for the tests.
            lists = -(-(pages + 3) // PER_PAGE) + 2 if kind is DomainKind.PV else 0
            control.set_max_memory(self.domid, pages + lists + 16)
            frames = control.populate_physmap(self.domid, range(pages + lists))
            foreign = stack.enter_context(ForeignMemory())
            memory = stack.enter_context(foreign.map(self.domid, frames, BOTH))
            grants = stack.enter_context(
                foreign.map_resource(self.domid, ResourceKind.GRANT_TABLE, 0, 0, GRANT_FRAMES, BOTH)
            )
            #: Frame numbers for mapping its pages: machine frames if it is PV, else guest frames.
            self.frames: Final = tuple(frames[:pages])
            everything = view(memory)
            #: All its pages.
            self.memory: Final = everything[: pages * PAGE_SIZE]
            self._grants: Final = (ctypes.c_uint64 * REFERENCES).from_address(grants.address)
            if kind is DomainKind.PV:
                self._publish(foreign, [*frames], everything)
            everything.release()
            self._stack: Final = stack.pop_all()

    def _publish(self, foreign: ForeignMemory, frames: list[int], memory: memoryview) -> None:
        # The pages' frames are in the lists, the lists' frames in the last page but one, and its in the last.
        count = len(frames)
        listing = memory.cast("Q")
        first = self.pages * PER_PAGE
        for index, frame in enumerate(frames):
            listing[first + index] = frame
        last = (count - 1) * PER_PAGE
        for index, frame in enumerate(frames[self.pages : count - 2]):
            listing[last - PER_PAGE + index] = frame
        listing[last] = frames[count - 2]
        info = self.control.info(self.domid)
        assert info is not None
        with foreign.map(self.domid, [info.shared_info_frame], BOTH) as shared:
            ctypes.c_uint64.from_address(shared.address + MAX_PFN).value = count
            ctypes.c_uint64.from_address(shared.address + FRAME_LIST_LIST).value = frames[count - 1]

    def grant(self, ref: int, page: int, *, to: int = 0, read_only: bool = False) -> None:
        """Grant a page to a domain, under a reference that is not in use."""
        assert not self.in_use(ref)
        self._grants[ref] = 0
        self._grants[ref] = PERMIT | (READ_ONLY if read_only else 0) | to << 16 | self.frames[page] << 32

    def revoke(self, ref: int) -> None:
        """Take a grant back, as a guest does.

        :raises OSError: EBUSY: the page is mapped, and so the grant stays.
        """
        if self.in_use(ref):
            raise OSError(errno.EBUSY, f"grant {ref} of domain {self.domid}: {os.strerror(errno.EBUSY)}")
        self._grants[ref] = 0

    def in_use(self, ref: int) -> bool:
        """Whether a grant is mapped or being copied, as the hypervisor sees it."""
        return bool(self._grants[ref] & (READING | WRITING))

    def grants_in_use(self) -> list[int]:
        """The references whose pages are mapped or being copied."""
        return [ref for ref, entry in enumerate(self._grants) if entry & (READING | WRITING)]

    def run(self, code: bytes, *, at: int = PAGE_SIZE, **registers: int) -> None:
        """Let vCPU 0 run 32-bit code in flat protected mode without paging, once in its life (HVM only).

        A HLT ends it, and with interrupts off it shuts the domain down.

        :param at: guest-physical address that the code is written to.
        :param registers: fields of Cpu that are to be other than 0, or than flat.
        """
        self.memory[at : at + len(code)] = code
        cpu = Cpu(rip=at, rflags=2, cr0=0x11, dr6=0xFFFF0FF0, dr7=0x400, tr_limit=0x67, tr_arbytes=0x8B)
        for name in ("cs", "ds", "es", "ss"):
            setattr(cpu, f"{name}_limit", 0xFFFFFFFF)
            setattr(cpu, f"{name}_arbytes", 0xC9B if name == "cs" else 0xC93)
        for name, value in registers.items():
            assert hasattr(cpu, name)
            setattr(cpu, name, value)
        header = self.control.hvm_context(self.domid)[:HEADER_BYTES]
        record = struct.pack("<HHI", CPU_RECORD, 0, ctypes.sizeof(cpu)) + bytes(cpu)
        self.control.set_hvm_context(self.domid, header + record + struct.pack("<HHI", END_RECORD, 0, 0))
        self.control.unpause(self.domid)

    def word(self, at: int) -> int:
        """Four bytes of its memory, as a number."""
        value: int
        (value,) = struct.unpack_from("<I", self.memory, at)
        return value

    @property
    def halted(self) -> bool:
        """Whether the code has come to its end."""
        info = self.control.info(self.domid)
        return info is not None and info.shutdown is not None

    def close(self) -> None:
        """Destroy the domain. Nothing may use its memory any more. Closing twice is harmless."""
        self.memory.release()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self.close()
