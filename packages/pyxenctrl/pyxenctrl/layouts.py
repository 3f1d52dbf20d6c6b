# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What libxenctrl takes: its functions, and its structures in each version of Xen (public/domctl.h).

The library belongs to one version of Xen, by its soname and by its structures. A version that is not in the
table is refused: with a guessed layout the library could write past our memory. For x86-64.
"""

import ctypes
import errno
import platform
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias

from pyxenctrl.library import Prototype, declare

__all__ = (
    "Version",
    "CreateDomain",
    "DomainInfoRecord",
    "LAYOUTS",
    "layout",
    "written",
    "soname",
    "library",
    "running",
    "newest_installed",
)

#: Major and minor version of Xen.
Version: TypeAlias = tuple[int, int]

_U8, _U16, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64

_HEAD: Final = (
    ("ssidref", _U32),
    ("handle", _U8 * 16),
    ("flags", _U32),
    ("iommu_opts", _U32),
    ("max_vcpus", _U32),
    ("max_evtchn_port", _U32),
    ("max_grant_frames", ctypes.c_int32),
    ("max_maptrack_frames", ctypes.c_int32),
    ("grant_opts", _U32),
)
_TAIL: Final = (
    ("vmtrace_size", _U32),
    ("cpupool_id", _U32),
    ("emulation_flags", _U32),
    ("misc_flags", _U32),
)


class CreateDomain(ctypes.Structure):
    """``struct xen_domctl_createdomain``, without fields: those are the versions' own."""

    ssidref: int
    handle: "ctypes.Array[ctypes.c_uint8]"
    flags: int
    iommu_opts: int
    max_vcpus: int
    max_evtchn_port: int
    max_grant_frames: int
    max_maptrack_frames: int
    grant_opts: int
    vmtrace_size: int
    cpupool_id: int
    emulation_flags: int
    misc_flags: int


class _CreateDomain17(CreateDomain):
    _fields_ = [*_HEAD, *_TAIL]


class _CreateDomain19(CreateDomain):
    _fields_ = [*_HEAD, ("altp2m_opts", _U32), *_TAIL]


class DomainInfoRecord(ctypes.Structure):
    """``struct xen_domctl_getdomaininfo``, the same in all versions of the table."""

    _fields_ = [
        ("domain", _U16),
        ("pad1", _U16),
        ("flags", _U32),
        ("tot_pages", _U64),
        ("max_pages", _U64),
        ("outstanding_pages", _U64),
        ("shr_pages", _U64),
        ("paged_pages", _U64),
        ("shared_info_frame", _U64),
        ("cpu_time", _U64),
        ("nr_online_vcpus", _U32),
        ("max_vcpu_id", _U32),
        ("ssidref", _U32),
        ("handle", _U8 * 16),
        ("cpupool", _U32),
        ("gpaddr_bits", _U8),
        ("pad2", _U8 * 7),
        ("emulation_flags", _U32),
        ("misc_flags", _U32),
    ]


#: How a domain's creation is described, for each version there is a layout of.
LAYOUTS: Final[dict[Version, type[CreateDomain]]] = {
    (4, 17): _CreateDomain17,
    (4, 18): _CreateDomain17,
    (4, 19): _CreateDomain19,
    (4, 20): _CreateDomain19,
}


def layout(version: Version) -> type[CreateDomain]:
    """How the creation of a domain is described to that version's libxenctrl.

    :raises OSError: ENOTSUP: there is no layout for it, or none on this machine.
    """
    machine = platform.machine()
    if machine != "x86_64":
        raise OSError(errno.ENOTSUP, f"libxenctrl is bound on x86_64 only, and this is {machine}")
    if version not in LAYOUTS:
        known = ", ".join(written(version) for version in sorted(LAYOUTS))
        raise OSError(
            errno.ENOTSUP,
            f"libxenctrl of Xen {written(version)} is not bound: its structures differ from version to "
            f"version, and those of {known} are known",
        )
    return LAYOUTS[version]


def written(version: Version) -> str:
    """A version as Xen and its sonames write it."""
    major, minor = version
    return f"{major}.{minor}"


def soname(name: str, version: Version) -> str:
    """What a library is called that belongs to one version of Xen."""
    return f"lib{name}.so.{written(version)}"


@cache
def library(version: Version) -> ctypes.CDLL:
    """The library of a version of Xen, with its functions declared.

    :raises FileNotFoundError: it is not installed.
    :raises OSError: ENOTSUP: that version's structures are not known.
    """
    create = ctypes.POINTER(layout(version))
    status, handle, domid, count, order = ctypes.c_int, ctypes.c_void_p, _U32, ctypes.c_ulong, ctypes.c_uint
    address, frames, info = ctypes.c_void_p, ctypes.POINTER(_U64), ctypes.POINTER(DomainInfoRecord)
    functions: dict[str, Prototype] = {
        "interface_open": (handle, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)),
        "interface_close": (status, (handle,)),
        "version": (status, (handle, ctypes.c_int, address)),
        "domain_create": (status, (handle, ctypes.POINTER(domid), create)),
        "domain_max_vcpus": (status, (handle, domid, ctypes.c_uint)),
        "domain_setmaxmem": (status, (handle, domid, _U64)),
        "domain_populate_physmap_exact": (status, (handle, domid, count, order, ctypes.c_uint, frames)),
        "domain_decrease_reservation_exact": (status, (handle, domid, count, order, frames)),
        "domain_pause": (status, (handle, domid)),
        "domain_unpause": (status, (handle, domid)),
        "domain_destroy": (status, (handle, domid)),
        "domain_shutdown": (status, (handle, domid, ctypes.c_int)),
        "domain_getinfolist": (status, (handle, domid, ctypes.c_uint, info)),
        "domain_hvm_getcontext": (status, (handle, domid, address, _U32)),
        "domain_hvm_setcontext": (status, (handle, domid, address, _U32)),
        "hvm_param_get": (status, (handle, domid, _U32, ctypes.POINTER(_U64))),
        "hvm_param_set": (status, (handle, domid, _U32, _U64)),
        "evtchn_alloc_unbound": (status, (handle, domid, domid)),
    }
    return declare(soname("xenctrl", version), "xc_", functions)


def running(hypervisor: Path = Path("/sys/hypervisor")) -> Version | None:
    """The version of the Xen below this kernel, None if there is none or the kernel does not say.

    :param hypervisor: where the kernel tells it.
    """
    try:
        if (hypervisor / "type").read_text().strip() != "xen":
            return None
        folder = hypervisor / "version"
        return int((folder / "major").read_text()), int((folder / "minor").read_text())
    except FileNotFoundError:
        return None


def newest_installed() -> Version:
    """The newest version whose library is installed and whose structures are known.

    :raises FileNotFoundError: there is none.
    """
    for version in sorted(LAYOUTS, reverse=True):
        try:
            library(version)
        except FileNotFoundError as error:
            missing = error
        else:
            return version
    raise missing
