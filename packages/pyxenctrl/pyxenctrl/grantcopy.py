# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What is copied from and to granted pages, and what Xen says about each piece: structures only, no calls.

``xengnttab_grant_copy_segment_t`` of xengnttab.h, ``GNTST_*`` of public/grant_table.h.
"""

import ctypes
import enum
import errno
from typing import Final, Self, final

from pyxenctrl.handle import PAGE_SIZE

__all__ = ("CopyFlag", "CopySegment", "Status")


class CopyFlag(enum.IntFlag):
    """Which side of a segment is a grant."""

    SOURCE = 1
    DESTINATION = 2


class Status(enum.IntEnum):
    """Xen's answer to one grant operation."""

    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_GNTREF = -3
    BAD_HANDLE = -4
    BAD_VIRT_ADDR = -5
    BAD_DEV_ADDR = -6
    NO_DEVICE_SPACE = -7
    PERMISSION_DENIED = -8
    BAD_PAGE = -9
    BAD_COPY_ARG = -10
    ADDRESS_TOO_BIG = -11
    EAGAIN = -12
    NO_SPACE = -13

    @classmethod
    def of(cls, code: int) -> "Status":
        """The status of a number; an unknown one is a general error."""
        try:
            return cls(code)
        except ValueError:
            return cls.GENERAL_ERROR

    @property
    def errno(self) -> int:
        """The nearest errno."""
        return _MEANINGS[self][0]

    @property
    def words(self) -> str:
        """What it means."""
        return _MEANINGS[self][1]


_MEANINGS: Final = {
    Status.OKAY: (0, "done"),
    # What Xen says of a page that is not granted, granted to another domain, or granted read-only.
    Status.GENERAL_ERROR: (errno.EINVAL, "not granted so"),
    Status.BAD_DOMAIN: (errno.ESRCH, "no such domain"),
    Status.BAD_GNTREF: (errno.EINVAL, "no such grant reference"),
    Status.BAD_HANDLE: (errno.EINVAL, "no such mapping"),
    Status.BAD_VIRT_ADDR: (errno.EFAULT, "bad virtual address"),
    Status.BAD_DEV_ADDR: (errno.EFAULT, "bad device address"),
    Status.NO_DEVICE_SPACE: (errno.ENOSPC, "no space in the IOMMU"),
    Status.PERMISSION_DENIED: (errno.EPERM, "not permitted"),
    Status.BAD_PAGE: (errno.EFAULT, "the page cannot be used"),
    Status.BAD_COPY_ARG: (errno.EINVAL, "it crosses the end of a page"),
    Status.ADDRESS_TOO_BIG: (errno.EFAULT, "the page's address is too large"),
    Status.EAGAIN: (errno.EAGAIN, "the page is paged out for now"),
    Status.NO_SPACE: (errno.ENOSPC, "out of space"),
}


class _Foreign(ctypes.Structure):
    _fields_ = [("ref", ctypes.c_uint32), ("offset", ctypes.c_uint16), ("domid", ctypes.c_uint16)]


class _Place(ctypes.Union):
    _fields_ = [("address", ctypes.c_uint64), ("foreign", _Foreign)]


@final
class CopySegment(ctypes.Structure):
    """One piece to copy, at most a page of a grant; memory here may cross pages."""

    _fields_ = [
        ("source", _Place),
        ("destination", _Place),
        ("n", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("status", ctypes.c_int16),
    ]

    @classmethod
    def from_grant(cls, domid: int, ref: int, offset: int, address: int, n: int) -> Self:
        """Copy n bytes at an offset of a granted page to memory here.

        :raises ValueError: they are not all in the page, or a number is none of Xen's.
        """
        foreign = _foreign(domid, ref, offset, n)
        return cls(_Place(foreign=foreign), _Place(address=address), n, CopyFlag.SOURCE)

    @classmethod
    def to_grant(cls, domid: int, ref: int, offset: int, address: int, n: int) -> Self:
        """Copy n bytes of memory here to an offset of a granted page.

        :raises ValueError: they are not all in the page, or a number is none of Xen's.
        """
        foreign = _foreign(domid, ref, offset, n)
        return cls(_Place(address=address), _Place(foreign=foreign), n, CopyFlag.DESTINATION)

    def __str__(self) -> str:
        to = self.flags & CopyFlag.DESTINATION
        grant = (self.destination if to else self.source).foreign
        return (
            f"{self.n} bytes {'to' if to else 'from'} offset {grant.offset:#x} "
            f"of grant {grant.ref:#x} of domain {grant.domid}"
        )


def _foreign(domid: int, ref: int, offset: int, n: int) -> _Foreign:
    # ctypes would cut off what does not fit, and another page would be copied.
    if not (0 <= n <= PAGE_SIZE and 0 <= offset <= PAGE_SIZE - n):
        raise ValueError(f"{n} bytes at offset {offset:#x} are not inside one page")
    if not (0 <= domid < 1 << 16 and 0 <= ref < 1 << 32):
        raise ValueError(f"reference {ref:#x} of domain {domid} cannot exist")
    return _Foreign(ref, offset, domid)
