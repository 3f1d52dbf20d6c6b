# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest's memory with one split ring in it, laid out by hand so that tests can break every rule."""

import mmap
import os
import struct

from vhost.mem import Memory, RegionSpec
from vhost.virtqueue import Queue, RingLayout

BASE = 0x10000
SIZE = 0x80000
DESC, AVAIL, USED, DATA = BASE, BASE + 0x8000, BASE + 0xA000, BASE + 0x20000
NEXT, WRITE, INDIRECT = 1, 2, 4


class Guest:
    """One region of memory at ``BASE`` and a ring of ``size`` entries; ``ram`` is the driver's mapping."""

    def __init__(self, size: int = 8, *, regions: int = 1, **options: object) -> None:
        fd = os.memfd_create("guest")
        os.ftruncate(fd, SIZE)
        self.ram = mmap.mmap(fd, SIZE)
        self.memory = Memory()
        part = SIZE // regions
        self.memory.replace(
            [
                (RegionSpec(BASE + i * part, part, BASE + i * part, i * part), os.dup(fd))
                for i in range(regions)
            ]
        )
        self.fd = fd
        self.layout = RingLayout(size)
        self.avail_idx = 0
        self.queue = self.start(**options)

    def start(self, **options: object) -> Queue:
        lengths = (self.layout.descriptor, self.layout.avail, self.layout.used)
        rings = tuple(self.memory.ring(at, n) for at, n in zip((DESC, AVAIL, USED), lengths, strict=True))
        return Queue(0, self.layout, self.memory, rings, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        self.queue.close()
        self.memory.clear()
        self.ram.close()
        os.close(self.fd)

    def put(self, gpa: int, data: bytes) -> None:
        self.ram[gpa - BASE : gpa - BASE + len(data)] = data

    def get(self, gpa: int, n: int) -> bytes:
        return self.ram[gpa - BASE : gpa - BASE + n]

    def u16(self, gpa: int) -> int:
        return struct.unpack("<H", self.get(gpa, 2))[0]

    def desc(
        self, i: int, addr: int, length: int, flags: int = 0, follow: int = 0, *, table: int = DESC
    ) -> None:
        self.put(table + 16 * i, struct.pack("<QIHH", addr, length, flags, follow))

    def offer(self, *heads: int) -> None:
        for head in heads:
            self.put(AVAIL + 4 + 2 * (self.avail_idx % self.layout.size), struct.pack("<H", head))
            self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.publish(self.avail_idx)

    def publish(self, idx: int) -> None:
        self.put(AVAIL + 2, struct.pack("<H", idx & 0xFFFF))

    def used(self) -> list[tuple[int, int]]:
        n = self.u16(USED + 2)
        entry = range(max(0, n - self.layout.size), n)
        return [struct.unpack("<II", self.get(USED + 4 + 8 * (i % self.layout.size), 8)) for i in entry]
