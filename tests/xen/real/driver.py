# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A virtio driver whose ring and buffers are pages of a puppet, which it grants as Linux does.

Ring pages and what the device writes are granted writable, what the device only reads is granted read-only.
"""

from collections.abc import Iterator, Sequence

from tests.xen.real.frontend import FOREIGN, GRANT, GRANT_BIT, NO_ADVANCE, NO_ADVANCE_8, RingPlace, region
from tests.xen.real.puppet import Puppet
from vhost.protocol import MemoryRegion
from vhost.virtqueue import DriverQueue, RingLayout

__all__ = ("KINDS", "ON_DEMAND", "Driver")

ON_DEMAND = {"on demand": GRANT | NO_ADVANCE, "on demand, as vm-memory says it": GRANT | NO_ADVANCE_8}
#: Xen flags of a region, by what they mean.
KINDS = {"foreign": FOREIGN, "in advance": GRANT, **ON_DEMAND}

PAGE = 4096
FIRST_REF = 16
DESC, AVAIL, USED, DATA = range(4)  # pages


class Driver:
    """A ring of `size` entries and `slots` requests, each with an area to read from and one to write to.

    :param flags: xen flags of the memory's regions; they decide what addresses are.
    :param span: bytes of each area that the device reads, whole pages.
    :param room: bytes of each area that it writes, whole pages; by default as many.
    :param table_len: descriptors of an indirect table for each entry; 0: chains are direct.
    """

    def __init__(
        self,
        puppet: Puppet,
        flags: int,
        *,
        size: int = 64,
        slots: int = 32,
        span: int = PAGE,
        room: int | None = None,
        table_len: int = 0,
    ) -> None:
        self.puppet, self.flags, self.slots = puppet, flags, slots
        self._span, self._room = span, span if room is None else room
        layout = RingLayout(size)
        #: First pages of the areas that the device writes, of those that it reads, and of the tables.
        self.writable = DATA
        self.readable = self.writable + slots * self._room // PAGE
        self.tables = self.readable + slots * self._span // PAGE
        tables = -(-16 * size * table_len // PAGE)
        #: Pages in use, from the first one on.
        self.pages = self.tables + tables
        assert self.pages <= puppet.pages, f"{self.pages} pages wanted"
        if flags & GRANT:
            for page in range(self.pages):
                puppet.grant(self.ref(page), page, read_only=page >= self.readable)
        memory = puppet.memory
        memory[: DATA * PAGE] = bytes(DATA * PAGE)
        self.queue = DriverQueue(
            layout,
            memory[DESC * PAGE :][: layout.descriptor],
            memory[AVAIL * PAGE :][: layout.avail],
            memory[USED * PAGE :][: layout.used],
            tables=memory[self.tables * PAGE :][: tables * PAGE] if tables else None,
            tables_gpa=self.address(self.tables),
            table_len=table_len,
        )
        self.place = RingPlace(size, self.address(DESC), self.address(AVAIL), self.address(USED))
        self._open: dict[int, tuple[int, int]] = {}  # head: its slot, and bytes it may be answered with

    @staticmethod
    def ref(page: int) -> int:
        """The grant reference of a page."""
        return FIRST_REF + page

    def address(self, page: int) -> int:
        """What the device takes for the address of a page."""
        return GRANT_BIT | self.ref(page) << 12 if self.flags & GRANT else page << 12

    def regions(self) -> list[MemoryRegion]:
        """The memory, as the front-end describes it; what is granted read-only is a region of its own."""
        if self.flags != GRANT:
            return [self.region(0, self.pages)]
        return [self.region(0, self.readable), self.region(self.readable, self.pages)]

    def region(self, first: int, end: int) -> MemoryRegion:
        """Some of its pages as a region."""
        return region(self.puppet.domid, self.address(first), (end - first) * PAGE, self.flags)

    def add(self, slot: int, readable: Sequence[bytes], writable: Sequence[int]) -> int:
        """Queues a request; returns the head of its chain.

        :param readable: what the device is to read, a descriptor each.
        :param writable: the room it has for its answer, a descriptor each, back to back.
        """
        read, write = [], []
        at = self.readable * PAGE + slot * self._span
        for data in readable:
            self.puppet.memory[at : at + len(data)] = data
            read.append((self.address(at // PAGE) + at % PAGE, len(data)))
            at += -(-len(data) // 16) * 16
        at = start = self.writable * PAGE + slot * self._room
        for n in writable:
            write.append((self.address(at // PAGE) + at % PAGE, n))
            at += n
        head = self.queue.add(read, write)
        assert head >= 0, "the ring is full"
        self._open[head] = slot, at - start
        return head

    def done(self) -> Iterator[tuple[int, bytes]]:
        """The requests that the device has answered since: slot, and what it wrote."""
        for head, written in self.queue.poll():
            slot, room = self._open.pop(head)
            assert written <= room
            start = self.writable * PAGE + slot * self._room
            yield slot, bytes(self.puppet.memory[start : start + written])

    @property
    def used_flags(self) -> int:
        """The low byte of the used ring's flags."""
        return self.puppet.memory[USED * PAGE]

    @used_flags.setter
    def used_flags(self, value: int) -> None:
        self.puppet.memory[USED * PAGE] = value

    def revoke(self) -> None:
        """Take all grants back.

        :raises OSError: EBUSY: one is in use.
        """
        for page in range(self.pages):
            self.puppet.revoke(self.ref(page))
