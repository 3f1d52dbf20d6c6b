# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices that know a ring by its bytes alone (virtio 1.3, 2.7 and 2.8), and a driver for them."""

import struct
import sys
from dataclasses import dataclass, field

from vhost.virtqueue import DriverQueue, RingLayout

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
TABLES = 0x100000

Piece = tuple[int, int]


@dataclass
class Taken:
    """A chain as a device finds it, and how far it got in the ring with it."""

    id: int
    readable: list[Piece] = field(default_factory=list)
    writable: list[Piece] = field(default_factory=list)
    slots: int = 1

    def add(self, addr: int, length: int, flags: int) -> None:
        assert flags & WRITE or not self.writable, "readable behind writable"
        (self.writable if flags & WRITE else self.readable).append((addr, length))

    @property
    def room(self) -> int:
        return sum(length for _, length in self.writable)


class Rig:
    """The memory of a ring, its driver, and what a device needs to know of it."""

    def __init__(
        self,
        size: int = 8,
        *,
        packed: bool = False,
        event_idx: bool = False,
        in_order: bool = False,
        big_endian: bool = False,
        check: bool = False,
        table_len: int = 0,
    ) -> None:
        layout = RingLayout(size, packed)
        self.size, self.event_idx, self.in_order = size, event_idx, in_order
        self.order = ">" if big_endian else "<"
        self.desc, self.avail, self.used, self.tables = (
            bytearray(n) for n in (layout.descriptor, layout.avail, layout.used, 16 * size * table_len)
        )
        self.driver = DriverQueue(
            layout,
            *map(memoryview, (self.desc, self.avail, self.used)),
            event_idx=event_idx,
            in_order=in_order,
            big_endian=big_endian,
            check=check,
            tables=memoryview(self.tables) if table_len else None,
            tables_gpa=TABLES,
            table_len=table_len,
        )
        self.device: SplitDevice | PackedDevice = PackedDevice(self) if packed else SplitDevice(self)

    def table(self, addr: int, length: int, layout: str) -> list[tuple[int, ...]]:
        """The descriptors of an indirect table."""
        assert length > 0
        assert length % 16 == 0
        at = addr - TABLES
        assert 0 <= at <= len(self.tables) - length
        return list(struct.iter_unpack(self.order + layout, self.tables[at : at + length]))


def store16(memory: bytearray, at: int, value: int, order: str = "<") -> None:
    """Write two bytes at once, for a driver in another thread: `struct` writes one after the other."""
    swap = (order == ">") == (sys.byteorder == "little")
    memoryview(memory).cast("H")[at // 2] = (
        int.from_bytes(value.to_bytes(2, "big"), "little") if swap else value
    )


class SplitDevice:
    """A device on a split ring."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.next = self.used = 0

    def u16(self, memory: bytearray, at: int) -> int:
        return int(struct.unpack_from(self.rig.order + "H", memory, at)[0])

    def take(self) -> Taken | None:
        """The next chain, if there is one."""
        rig = self.rig
        if self.u16(rig.avail, 2) == self.next:
            return None
        head = self.u16(rig.avail, 4 + 2 * (self.next % rig.size))
        self.next = (self.next + 1) & 0xFFFF
        chain = Taken(head)
        at, steps = head, 0
        while True:
            addr, length, flags, follow = struct.unpack_from(rig.order + "QIHH", rig.desc, 16 * at)
            steps += 1
            assert steps <= rig.size
            if rig.in_order and steps > 1:
                assert at == (head + steps - 1) % rig.size
            if flags & INDIRECT:
                assert not flags & NEXT
                self._indirect(chain, addr, length)
                break
            chain.add(addr, length, flags)
            if not flags & NEXT:
                break
            at = follow
        chain.slots = steps
        return chain

    def _indirect(self, chain: Taken, addr: int, length: int) -> None:
        table, at = self.rig.table(addr, length, "QIHH"), 0
        while True:
            piece, size, flags, follow = table[at]
            chain.add(piece, size, flags)
            if not flags & NEXT:
                break
            at = follow

    def give(self, chain: Taken, length: int, *, batch: list[Taken] | None = None) -> None:
        """Return a chain, or with it a batch of which it is the last, by one element."""
        self.write(chain.id, length)
        self.used = (self.used + len(batch or [chain])) & 0xFFFF
        self.publish()

    def write(self, head: int, length: int, *, ahead: int = 0) -> None:
        rig = self.rig
        at = 4 + 8 * ((self.used + ahead) % rig.size)
        struct.pack_into(rig.order + "II", rig.used, at, head, length)

    def publish(self) -> None:
        store16(self.rig.used, 2, self.used, self.rig.order)

    def kicks(self, want: bool) -> None:
        """Ask for a kick at the next chain, or for none."""
        rig = self.rig
        if not rig.event_idx:
            store16(rig.used, 0, not want, rig.order)
        elif want:
            store16(rig.used, 4 + 8 * rig.size, self.next, rig.order)

    def idle(self) -> bool:
        """Whether there is nothing to take, after kicks were asked for."""
        return self.u16(self.rig.avail, 2) == self.next

    def call_wanted(self, passed: int) -> bool:
        """Whether the driver wants to hear of the last `passed` entries of the used ring."""
        rig = self.rig
        if not rig.event_idx:
            return not self.u16(rig.avail, 0) & 1
        event = self.u16(rig.avail, 4 + 2 * rig.size)
        return (self.used - event - 1) & 0xFFFF < passed


class PackedDevice:
    """A device on a packed ring."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.next = self.used = 0
        self.avail_wrap = self.used_wrap = True

    def _peek(self, at: int) -> tuple[int, int, int, int]:
        addr, length, name, flags = struct.unpack_from("<QIHH", self.rig.desc, 16 * at)
        return addr, length, name, flags

    def take(self) -> Taken | None:
        """The next chain, if there is one."""
        chain = Taken(-1, slots=0)
        while True:
            addr, length, name, flags = self._peek(self.next)
            if bool(flags & AVAIL) != self.avail_wrap or bool(flags & USED) == self.avail_wrap:
                assert not chain.slots, "a chain whose end is not there"
                return None
            self.next += 1
            if self.next == self.rig.size:
                self.next, self.avail_wrap = 0, not self.avail_wrap
            chain.slots += 1
            if flags & INDIRECT:
                assert not flags & NEXT
                assert chain.slots == 1
                for piece, size, _, bits in self.rig.table(addr, length, "QIHH"):
                    chain.add(piece, size, bits)
            else:
                chain.add(addr, length, flags)
            if not flags & NEXT:
                chain.id = name
                return chain

    def give(self, chain: Taken, length: int, *, batch: list[Taken] | None = None) -> None:
        """Return a chain, or with it a batch of which it is the last, by one descriptor."""
        self.write(chain.id, length)
        self.skip(sum(one.slots for one in batch or [chain]))

    def write(self, name: int, length: int, *, ahead: int = 0) -> None:
        at, wrap = self.used + ahead, self.used_wrap
        if at >= self.rig.size:
            at, wrap = at - self.rig.size, not wrap
        flags = (AVAIL | USED if wrap else 0) | (WRITE if length else 0)
        if length:  # without WRITE, nobody looks at it: it stays the buffer's, as DPDK leaves it
            struct.pack_into("<I", self.rig.desc, 16 * at + 8, length)
        struct.pack_into("<H", self.rig.desc, 16 * at + 12, name)
        store16(self.rig.desc, 16 * at + 14, flags)

    def skip(self, slots: int) -> None:
        self.used += slots
        if self.used >= self.rig.size:
            self.used, self.used_wrap = self.used - self.rig.size, not self.used_wrap

    def kicks(self, want: bool) -> None:
        """Ask for a kick at the next chain, or for none."""
        flags = 1 if not want else 2 if self.rig.event_idx else 0
        store16(self.rig.used, 0, self.next | self.avail_wrap << 15)
        store16(self.rig.used, 2, flags)

    def idle(self) -> bool:
        """Whether there is nothing to take, after kicks were asked for."""
        flags = self._peek(self.next)[3]
        return bool(flags & AVAIL) != self.avail_wrap or bool(flags & USED) == self.avail_wrap

    def call_wanted(self, passed: int) -> bool:
        """Whether the driver wants to hear of the last `passed` entries of the ring."""
        off_wrap, flags = struct.unpack("<HH", self.rig.avail)
        if flags != 2:
            return flags == 0
        assert self.rig.event_idx
        at, wrap = self.used, self.used_wrap
        for _ in range(passed):
            at -= 1
            if at < 0:
                at, wrap = self.rig.size - 1, not wrap
            if off_wrap == at | wrap << 15:
                return True
        return False
