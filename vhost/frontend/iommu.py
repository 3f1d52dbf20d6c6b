# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The I/O addresses of a frontend's guest, and the translations that backends ask for (ACCESS_PLATFORM)."""

from dataclasses import dataclass
from typing import Final, Protocol

from vhost.protocol import IotlbMsg, IotlbPerm, IotlbType

from .ram import GuestRam

__all__ = ("Iommu", "LinearIommu", "Translation", "update")

# Where guest memory begins in I/O addresses by default: nowhere that a guest or user address could be.
_OFFSET: Final = 0x100_0000_0000


@dataclass(frozen=True, slots=True)
class Translation:
    """`size` bytes from I/O address `iova` are those from guest address `gpa`; `perm` is IotlbPerm."""

    iova: int
    size: int
    gpa: int
    perm: int = IotlbPerm.READ | IotlbPerm.WRITE


class Iommu(Protocol):
    """What a frontend asks of the ``iommu`` that :func:`vhost.connect` was given."""

    def iova(self, gpa: int, size: int) -> int:
        """The I/O address of `size` bytes of guest memory from `gpa`, which have to be contiguous there."""

    def lookup(self, iova: int) -> Translation | None:
        """What is mapped at `iova`, and as much around it as the backend may know; None: nothing."""


class LinearIommu:
    """Guest memory at other addresses: all by the same offset, told in pieces of `grain` bytes.

    :param offset: of I/O addresses from guest addresses, in bytes.
    :param grain: the most that one translation covers, a power of two; smaller ones are asked for more often.

    :ivar misses: how many translations were asked for.
    """

    def __init__(self, offset: int = _OFFSET, grain: int = 1 << 21) -> None:
        if grain <= 0 or grain & (grain - 1):
            raise ValueError(f"grain of {grain} bytes: a power of two is wanted")
        self.offset = offset
        self.grain = grain
        self.misses = 0

    def iova(self, gpa: int, size: int) -> int:
        """`gpa` and the offset."""
        return gpa + self.offset

    def lookup(self, iova: int) -> Translation | None:
        """The piece that `iova` is in."""
        self.misses += 1
        start = iova & ~(self.grain - 1)
        return Translation(start, self.grain, start - self.offset)


def update(iommu: Iommu, ram: GuestRam, iova: int) -> IotlbMsg | None:
    """The message that tells a backend what is at `iova`, at most the region it is in; None: nothing is."""
    found = iommu.lookup(iova)
    if found is None:
        return None
    wanted = iova - found.iova + found.gpa
    here = next((gpa for gpa, _ in ram.regions() if gpa <= wanted < gpa + ram.region_size), None)
    if here is None:
        return None
    low, high = max(found.gpa, here), min(found.gpa + found.size, here + ram.region_size)
    start = low - found.gpa + found.iova
    return IotlbMsg(start, high - low, ram.user_address(low), found.perm, IotlbType.UPDATE)
