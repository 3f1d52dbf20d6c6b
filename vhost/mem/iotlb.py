# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What is known of the translations of a guest's IOMMU: a table of I/O addresses in place of guest addresses.

The front-end is asked for what is missing, and says when something is no longer true.
"""

from typing import Final, final

from vhost.errors import GuestMemoryError
from vhost.mem.memory import GuestMemory
from vhost.mem.regions import RegionSpec
from vhost.mem.table import ADDRESS_END, Draft, Table

__all__ = ("Iotlb",)

#: Translations that are kept; when there are more, all are forgotten and asked for again.
LIMIT: Final = 16384


@final
class Iotlb:
    """Translations of I/O addresses to guest memory, by way of front-end virtual addresses.

    Like guest memory it has an immutable :attr:`table` that every change replaces. Not safe to change from
    several threads at once.

    :param memory: where translations lead.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        #: The translations that are known, a region for each.
        self.table = Table()

    def update(self, iova: int, size: int, user_addr: int, *, read: bool, write: bool) -> None:
        """Enter a translation, in place of what was known of these addresses.

        One to the same place adds its permissions to those that are known: some front-ends answer with just
        the permission that was asked for, and a page may be both read and written.

        :raises GuestMemoryError: it makes no sense, or leads to what is no guest memory.
        """
        if size <= 0 or min(iova, user_addr) < 0 or max(iova, user_addr) + size > ADDRESS_END:
            raise GuestMemoryError(f"a translation of {size:#x} bytes from {iova:#x} to {user_addr:#x}")
        pieces = self._memory.table.user_pieces(user_addr, size)
        if len(pieces) == 1 and (before := self.table.find(iova)) is not None:
            region, offset, _ = pieces[0]
            if before.spec == RegionSpec(iova, size, iova) and before.address == region.address + offset:
                read, write = read or before.readable, write or before.writable
        self.invalidate(iova, size)
        base: Table | None = self.table if len(self.table) + len(pieces) <= LIMIT else None
        draft = Draft(base, len(pieces), LIMIT)
        for region, offset, length in pieces:
            draft.enter(iova, region, offset, length, read=read, write=write)
            iova += length
        self.table = Table(draft=draft)

    def invalidate(self, iova: int, size: int) -> None:
        """Forget every translation that has one of these addresses."""
        end = min(iova + size, ADDRESS_END)
        gone = self.table.overlapping(iova, end)
        if not gone:
            return
        draft = Draft(self.table, 0, LIMIT)
        for region in gone:
            draft.remove(region.spec)
        self.table = Table(draft=draft)

    def clear(self) -> None:
        """Forget all of them."""
        self.table = Table()

    def lacking(self, iova: int, n: int, *, write: bool) -> list[tuple[int, int]]:
        """The parts of a range that cannot be written, or read, yet: address and length of each."""
        found: list[tuple[int, int]] = []
        at, end = iova, min(iova + n, ADDRESS_END)
        for region in self.table.overlapping(at, end):
            if not (region.writable if write else region.readable):
                continue
            if at < region.spec.guest_addr:
                found.append((at, region.spec.guest_addr - at))
            at = region.spec.guest_end
        if at < end:
            found.append((at, end - at))
        return found

    def guest_address(self, iova: int, n: int) -> int:
        """Where a range lies in guest memory, all of which has a translation.

        :raises GuestMemoryError: it is not contiguous there.
        """
        first = self.table.guest_address(iova)
        at, end = iova, iova + n
        while at < end:
            if self.table.guest_address(at) != first + at - iova:
                raise GuestMemoryError(
                    f"I/O addresses {iova:#x}+{n:#x} are not contiguous in guest memory from {at:#x} on"
                )
            at = self.table.locate(at, 1)[0].spec.guest_end
        return first
