# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libxenguest: which machine frames a PV domain's memory consists of (xenguest.h).

Foreign mapping of a PV domain takes machine frames, and only the domain knows which of its own frame numbers
each stands for: it keeps a table, p2m, and says where. For x86-64.
"""

import ctypes
import errno
import os
from array import array
from functools import cache
from typing import Final, final

from pyxenctrl.control import Control
from pyxenctrl.domain import DomainKind
from pyxenctrl.handle import Handle
from pyxenctrl.layouts import Version, soname
from pyxenctrl.library import Prototype, declare, failure

__all__ = ("NO_FRAME", "P2m", "library", "machine_frames")

#: What stands in the table where the domain has no memory.
NO_FRAME: Final = (1 << 64) - 1
_NO_FRAME_32: Final = (1 << 32) - 1


class _MemoryInfo(ctypes.Structure):
    # struct xc_domain_meminfo, the same in all versions that there is a layout of.
    _fields_ = [
        ("pt_levels", ctypes.c_uint),
        ("guest_width", ctypes.c_uint),
        ("pfn_type", ctypes.c_void_p),
        ("p2m_table", ctypes.c_void_p),
        ("p2m_size", ctypes.c_ulong),
        ("p2m_frames", ctypes.c_uint),
    ]


FUNCTIONS: Final[dict[str, Prototype]] = {
    "map_domain_meminfo": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint32, ctypes.POINTER(_MemoryInfo))),
    "unmap_domain_meminfo": (ctypes.c_int, (ctypes.c_void_p, ctypes.POINTER(_MemoryInfo))),
}


@cache
def library(version: Version) -> ctypes.CDLL:
    """The library of a version of Xen, with its functions declared.

    :raises FileNotFoundError: it is not installed.
    """
    return declare(soname("xenguest", version), "xc_", FUNCTIONS)


@final
class P2m(Handle):
    """A PV domain's table of machine frames, as it is when it is read. Made by ``machine_frames``."""

    def __init__(self, control: Control, domid: int) -> None:
        self._control = control
        self._library = library(control.version)
        self._info = _MemoryInfo()
        with control._live() as handle:
            if self._library.xc_map_domain_meminfo(handle, domid, self._info):
                raise failure(f"cannot map the table of machine frames of domain {domid}")
            control._hold()
        super().__init__(self._info.p2m_table)

    def __len__(self) -> int:
        """Frames the domain had numbers for when the table was mapped."""
        size: int = self._info.p2m_size
        return size

    def __getitem__(self, pfn: int) -> int:
        """The machine frame of one of the domain's frames, or ``NO_FRAME``."""
        return self.lookup(pfn, 1)[0]

    def lookup(self, first: int, count: int) -> "array[int]":
        """The machine frames of `count` of the domain's frames, ``NO_FRAME`` where it has no memory.

        The domain writes the table: it may hold frames of others, which cannot be mapped as its own.

        :raises IndexError: the table does not reach that far.
        """
        if first < 0 or count < 0 or first + count > len(self):
            raise IndexError(f"frames {first:#x} to {first + count:#x} of a table of {len(self):#x}")
        width: int = self._info.guest_width
        entries = array("I" if width == 4 else "Q")
        with self._live() as table:
            entries.frombytes(ctypes.string_at(table + first * width, count * width))
        if width == 4:
            return array("Q", (NO_FRAME if entry == _NO_FRAME_32 else entry for entry in entries))
        return entries

    def _close(self, pointer: int) -> None:
        try:
            if self._library.xc_unmap_domain_meminfo(self._control._pointer, self._info):
                raise failure(f"cannot unmap the table of machine frames at {pointer:#x}")
        finally:
            self._control._release()


def machine_frames(control: Control, domid: int) -> P2m:
    """The table that translates a PV domain's frame numbers to machine frames.

    :raises OSError: ESRCH: no such domain; EINVAL: it is no PV domain, or has not said where its table is;
        others: what it said of it is wrong.
    :raises FileNotFoundError: libxenguest is not installed.
    """
    info = control.info(domid)
    if info is None:
        code = errno.ESRCH
        raise OSError(code, f"cannot find the machine frames of domain {domid}: {os.strerror(code)}")
    if info.kind is not DomainKind.PV:
        raise OSError(
            errno.EINVAL, f"domain {domid} is not PV: its own frame numbers are the ones to map its memory by"
        )
    return P2m(control, domid)
