# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Drivers that know a ring by its bytes alone (virtio 1.3, 2.7 and 2.8), and the memory they share."""

import mmap
import os
import struct
from dataclasses import dataclass, field
from itertools import pairwise

from vhost.mem import Memory, RegionSpec
from vhost.virtqueue import Queue, RingLayout

NEXT, WRITE, INDIRECT, AVAIL, USED, WRAP = 1, 2, 4, 1 << 7, 1 << 15, 1 << 15
BASE = 0x4000_0000

Pieces = list[tuple[int, int]]


@dataclass(slots=True)
class Sent:
    """A request on the ring: its buffers, and what it takes of the ring."""

    number: int
    readable: Pieces
    writable: Pieces
    slots: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        return sum(n for _, n in self.writable)


class Shared:
    """Guest memory in several regions with a ring, indirect tables and room for the buffers of each entry.

    :param room: bytes for the buffers of a request.
    :param table_len: entries of an indirect table, 0 for none.
    """

    def __init__(self, layout: RingLayout, *, room: int = 512, table_len: int = 0, regions: int = 3) -> None:
        self.layout, self.room, self.table_len = layout, room, table_len
        at = 0
        places = []
        for n in (layout.descriptor, layout.avail, layout.used, 16 * table_len * layout.size):
            places.append(BASE + at)
            at += -(-n // 64) * 64
        self.desc, self.avail, self.used, self.tables = places
        self.data = BASE + at
        pages = -(-(at + room * layout.size) // 4096) + regions
        self.fd = os.memfd_create("shared")
        os.ftruncate(self.fd, pages * 4096)
        self.ram = mmap.mmap(self.fd, pages * 4096)
        self.memory = Memory()
        # The rings are in the first region; buffers may cross into the others.
        first = -(-at // 4096)
        borders = sorted({0, *(first + (pages - first) * k // regions for k in range(1, regions)), pages})
        self.memory.replace(
            [
                (
                    RegionSpec(BASE + 4096 * a, 4096 * (b - a), BASE + 4096 * a, 4096 * a),
                    os.dup(self.fd),
                )
                for a, b in pairwise(borders)
            ]
        )

    def queue(self, **options: object) -> Queue:
        layout = self.layout
        lengths = (layout.descriptor, layout.avail, layout.used)
        places = (self.desc, self.avail, self.used)
        rings = tuple(self.memory.ring(at, n) for at, n in zip(places, lengths, strict=True))
        return Queue(0, layout, self.memory, rings, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        self.memory.clear()
        self.ram.close()
        os.close(self.fd)

    def put(self, gpa: int, data: bytes) -> None:
        self.ram[gpa - BASE : gpa - BASE + len(data)] = data

    def get(self, gpa: int, n: int) -> bytes:
        return self.ram[gpa - BASE : gpa - BASE + n]


class Driver:
    """What split and packed rings have in common."""

    def __init__(self, shared: Shared, *, event_idx: bool, in_order: bool, order: str = "<") -> None:
        self.shared, self.size = shared, shared.layout.size
        self.event_idx, self.in_order, self.order = event_idx, in_order, order
        self.flying: dict[int, Sent] = {}  # by id, oldest first
        self.free = self.size

    def u16(self, gpa: int) -> int:
        return int(struct.unpack(self.order + "H", self.shared.get(gpa, 2))[0])

    def put16(self, gpa: int, value: int) -> None:
        self.shared.put(gpa, struct.pack(self.order + "H", value))

    def used_batch(self, name: int, length: int) -> list[tuple[Sent, int]]:
        """What a used element stands for: with IN_ORDER all up to the one that it names."""
        if not self.in_order:
            return [(self.flying.pop(name), length)]
        assert name in self.flying
        batch = []
        for one in list(self.flying):
            sent = self.flying.pop(one)
            if one == name:
                return [*batch, (sent, length)]
            batch.append((sent, sent.room))
        raise AssertionError


class SplitDriver(Driver):
    """A driver of a split ring, in either byte order."""

    def __init__(self, shared: Shared, start: int = 0, **options: object) -> None:
        super().__init__(shared, **options)  # type: ignore[arg-type]
        self.idx = self.shown = self.seen = start
        self.put16(shared.avail + 2, start)
        self.put16(shared.used + 2, start)
        self.base = start
        self.vacant = list(range(self.size))

    def _write(self, table: int, i: int, piece: tuple[int, int], flags: int, follow: int) -> None:
        self.shared.put(table + 16 * i, struct.pack(self.order + "QIHH", *piece, flags, follow))

    def add(self, sent: Sent, inside: int) -> bool:
        """Put a request on the ring, its last `inside` descriptors in an indirect table."""
        pieces = [(piece, 0) for piece in sent.readable] + [(piece, WRITE) for piece in sent.writable]
        direct, table = pieces[: len(pieces) - inside], pieces[len(pieces) - inside :]
        count = len(direct) + bool(table)
        if count > self.free:
            return False
        self.free -= count
        # In order they have to be taken around the ring; otherwise from anywhere.
        sent.slots = [self.vacant.pop(0) for _ in range(count)]
        if table:
            at = self.shared.tables + 16 * self.shared.table_len * sent.slots[-1]
            for i, (piece, flags) in enumerate(table):
                last = i + 1 == len(table)
                self._write(at, i, piece, flags | (0 if last else NEXT), 0 if last else i + 1)
            direct.append(((at, 16 * len(table)), INDIRECT))
        for k, (piece, flags) in enumerate(direct):
            last = k + 1 == count
            follow = 0 if last else sent.slots[k + 1]
            self._write(self.shared.desc, sent.slots[k], piece, flags | (0 if last else NEXT), follow)
        head = sent.slots[0]
        self.put16(self.shared.avail + 4 + 2 * (self.idx % self.size), head)
        self.idx = (self.idx + 1) & 0xFFFF
        self.flying[head] = sent
        return True

    def show(self) -> bool:
        """Make available what was added; whether the device wants a kick."""
        old, self.shown = self.shown, self.idx
        self.put16(self.shared.avail + 2, self.idx)
        if not self.event_idx:
            return not self.u16(self.shared.used) & 1
        event = self.u16(self.shared.used + 4 + 8 * self.size)
        return (self.idx - event - 1) & 0xFFFF < (self.idx - old) & 0xFFFF

    def take(self) -> list[tuple[Sent, int]]:
        """What came back, with the length the device says."""
        got = []
        idx = self.u16(self.shared.used + 2)
        while self.seen != idx:
            at = self.shared.used + 4 + 8 * (self.seen % self.size)
            name, length = struct.unpack(self.order + "II", self.shared.get(at, 8))
            batch = self.used_batch(name, length)
            self.seen = (self.seen + len(batch)) & 0xFFFF
            for sent, _ in batch:
                self.vacant += sent.slots
                self.free += len(sent.slots)
            got += batch
        return got

    def ask(self, want: bool) -> None:
        """Ask for a call at the next used element, or for none."""
        if not self.event_idx:
            self.put16(self.shared.avail, not want)
        else:
            self.put16(self.shared.avail + 4 + 2 * self.size, self.seen if want else (self.seen - 1) & 0xFFFF)

    def wants_call(self, before: int, after: int) -> bool:
        """Whether it wants to hear of the used ring having gone from one index to another."""
        if not self.event_idx:
            return not self.u16(self.shared.avail) & 1
        event = self.u16(self.shared.avail + 4 + 2 * self.size)
        return (after - event - 1) & 0xFFFF < (after - before) & 0xFFFF

    def used_place(self) -> int:
        """How far the device is in the used ring."""
        return self.u16(self.shared.used + 2)


class PackedDriver(Driver):
    """A driver of a packed ring."""

    def __init__(self, shared: Shared, start: int = 0, **options: object) -> None:
        super().__init__(shared, **options)  # type: ignore[arg-type]
        self.at = self.shown = self.seen = start  # places never wrap here: their lap is the wrap counter
        place = self.place(start)
        self.base = place << 16 | place
        self.hidden: list[tuple[int, int]] = []  # flags of what is not shown
        self.names = list(range(self.size))
        # All that the ring holds is as the lap before left it: used.
        for k in range(self.size):
            lap = (start - self.size + k) if start >= self.size else -1
            flags = 0 if lap < 0 or lap // self.size % 2 else AVAIL | USED
            if start >= self.size:
                self.put16(shared.desc + 16 * (lap % self.size) + 14, flags)
        for k in range(start % self.size):
            lap = start // self.size
            self.put16(shared.desc + 16 * k + 14, 0 if lap % 2 else AVAIL | USED)

    def wrap(self, at: int) -> bool:
        return at // self.size % 2 == 0

    def place(self, at: int) -> int:
        return at % self.size | self.wrap(at) << 15

    def add(self, sent: Sent, inside: int) -> bool:
        """Put a request on the ring; all its descriptors, or none, are in an indirect table."""
        pieces = [(piece, 0) for piece in sent.readable] + [(piece, WRITE) for piece in sent.writable]
        if (1 if inside else len(pieces)) > self.free:
            return False
        name = self.names.pop(0)
        if inside:
            at = self.shared.tables + 16 * self.shared.table_len * name
            for i, (piece, flags) in enumerate(pieces):
                # NEXT and the id mean nothing there.
                noise = NEXT if i % 2 else 0
                self.shared.put(at + 16 * i, struct.pack("<QIHH", *piece, 0xFFFF, flags | noise))
            pieces = [((at, 16 * len(pieces)), INDIRECT)]
        self.free -= len(pieces)
        for k, (piece, flags) in enumerate(pieces):
            more = k + 1 < len(pieces)
            flags |= (NEXT if more else 0) | (AVAIL if self.wrap(self.at) else USED)
            at = self.shared.desc + 16 * (self.at % self.size)
            # Only in the last one the id means something.
            self.shared.put(at, struct.pack("<QIH", *piece, 0xAAAA if more else name))
            self.hidden.append((at + 14, flags))
            sent.slots.append(self.at)
            self.at += 1
        self.flying[name] = sent
        return True

    def show(self) -> bool:
        """Make available what was added; whether the device wants a kick."""
        if not self.hidden:
            return False
        for at, flags in reversed(self.hidden):
            self.put16(at, flags)
        self.hidden.clear()
        old, self.shown = self.shown, self.at
        off_wrap, flags = struct.unpack("<HH", self.shared.get(self.shared.used, 4))
        if flags == 2:
            assert self.event_idx
            return any(off_wrap == self.place(at) for at in range(old, self.at))
        return flags == 0

    def take(self) -> list[tuple[Sent, int]]:
        """What came back, with the length the device says."""
        got = []
        while self.seen < self.at:
            at = self.shared.desc + 16 * (self.seen % self.size)
            _, length, name, flags = struct.unpack("<QIHH", self.shared.get(at, 16))
            if bool(flags & AVAIL) != self.wrap(self.seen) or bool(flags & USED) != self.wrap(self.seen):
                break
            before = set(self.flying)
            batch = self.used_batch(name, length)
            self.names += sorted(before - set(self.flying))
            for sent, _ in batch:
                self.seen += len(sent.slots)
                self.free += len(sent.slots)
            got += batch
        return got

    def ask(self, want: bool) -> None:
        """Ask for a call at the next used element, or for none."""
        flags = 1 if not want else 2 if self.event_idx else 0
        self.shared.put(self.shared.avail, struct.pack("<HH", self.place(self.seen), flags))

    def wants_call(self, before: int, after: int) -> bool:
        """Whether it wants to hear of the device having gone from one place of the ring to another."""
        off_wrap, flags = struct.unpack("<HH", self.shared.get(self.shared.avail, 4))
        if flags != 2:
            return bool(flags == 0)
        return any(off_wrap == self.place(at) for at in range(before, after))

    def used_place(self) -> int:
        """How far the device is: what it has returned takes so many entries."""
        at = self.seen
        oldest = list(self.flying.items())
        while at < self.at:
            _, _, name, flags = struct.unpack(
                "<QIHH", self.shared.get(self.shared.desc + 16 * (at % self.size), 16)
            )
            if bool(flags & AVAIL) != self.wrap(at) or bool(flags & USED) != self.wrap(at):
                break
            if not self.in_order:
                at += len(self.flying[name].slots)
                continue
            while oldest:
                one, sent = oldest.pop(0)
                at += len(sent.slots)
                if one == name:
                    break
        return at
