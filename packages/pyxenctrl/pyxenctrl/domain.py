# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a domain is: its kind, its state, and what the hypervisor emulates for it."""

import enum
import uuid
from dataclasses import dataclass
from typing import Final

from pyxenctrl.layouts import DomainInfoRecord

__all__ = ("DomainKind", "Emulation", "ShutdownReason", "DomainInfo")

_DYING: Final = 1 << 0
_HVM: Final = 1 << 1
_SHUTDOWN: Final = 1 << 2
_PAUSED: Final = 1 << 3
_BLOCKED: Final = 1 << 4
_RUNNING: Final = 1 << 5
_REASON_SHIFT: Final = 16
_REASON_MASK: Final = 0xFF


class DomainKind(enum.Enum):
    """How a domain is virtualised. A PVH domain is an HVM domain for which little is emulated."""

    PV = "pv"
    HVM = "hvm"


class Emulation(enum.IntFlag):
    """What Xen emulates for an HVM domain: ``XEN_X86_EMU_*``."""

    LAPIC = 1 << 0
    HPET = 1 << 1
    PM = 1 << 2
    RTC = 1 << 3
    IOAPIC = 1 << 4
    PIC = 1 << 5
    VGA = 1 << 6
    IOMMU = 1 << 7
    PIT = 1 << 8
    USE_PIRQ = 1 << 9
    VPCI = 1 << 10
    #: What a PVH domain has.
    PVH = LAPIC
    #: What a domain with a device model for a PC has.
    PC = LAPIC | HPET | PM | RTC | IOAPIC | PIC | VGA | IOMMU | PIT | USE_PIRQ


class ShutdownReason(enum.IntEnum):
    """Why a domain stopped: ``SHUTDOWN_*`` of public/sched.h."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """What the hypervisor says of a domain at one moment."""

    domid: int
    kind: DomainKind
    #: It is being destroyed; what is left of it is held by others' mappings of its memory.
    dying: bool
    #: Why the guest stopped (a ShutdownReason, unless the guest invented one), None while it has not.
    shutdown: int | None
    paused: bool
    blocked: bool
    running: bool
    #: Pages it has, and the most it may have.
    pages: int
    max_pages: int
    #: Machine frame of its ``struct shared_info`` (PV).
    shared_info_frame: int
    #: Nanoseconds its vCPUs have run.
    cpu_time: int
    #: Virtual CPUs that are online.
    vcpus: int
    handle: uuid.UUID
    emulation: Emulation

    @classmethod
    def from_record(cls, record: DomainInfoRecord) -> "DomainInfo":
        """What libxenctrl wrote, in words."""
        flags: int = record.flags
        return cls(
            domid=record.domain,
            kind=DomainKind.HVM if flags & _HVM else DomainKind.PV,
            dying=bool(flags & _DYING),
            shutdown=flags >> _REASON_SHIFT & _REASON_MASK if flags & _SHUTDOWN else None,
            paused=bool(flags & _PAUSED),
            blocked=bool(flags & _BLOCKED),
            running=bool(flags & _RUNNING),
            pages=record.tot_pages,
            max_pages=record.max_pages,
            shared_info_frame=record.shared_info_frame,
            cpu_time=record.cpu_time,
            vcpus=record.nr_online_vcpus,
            handle=uuid.UUID(bytes=bytes(record.handle)),
            emulation=Emulation(record.emulation_flags),
        )
