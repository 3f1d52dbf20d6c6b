# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A driver for one queue of a device, on guest memory of its own: no socket, no thread."""

import mmap
import os

from vhost import Device
from vhost._core import lib
from vhost.mem import Memory, RegionSpec
from vhost.virtqueue import DriverQueue, Lane, Queue, RingLayout

RING = 256
DATA = 64 << 10  # where buffers begin; the ring lies below
SIZE = 16 << 20


class Rig:
    """Offers requests to `device`, lets it handle them, collects the answers in the order of the requests."""

    def __init__(self, device: Device) -> None:
        self.device = device
        fd = os.memfd_create("guest")
        os.ftruncate(fd, SIZE)
        self.ram = mmap.mmap(fd, SIZE)
        self.memory = Memory()
        self.memory.replace([(RegionSpec(0, SIZE, 0, 0), fd)])
        layout = RingLayout(RING)
        places = (0, layout.descriptor), (8192, layout.avail), (12288, layout.used)
        views = [memoryview(self.ram)[at : at + size] for at, size in places]
        self.driver = DriverQueue(layout, *views)
        rings = [self.memory.ring(at, size) for at, size in places]
        self.queue = Queue(0, layout, self.memory, tuple(rings), max_chain=device.max_chain)
        self.lane = Lane(self.queue, device.path(self.queue), -1)
        self._next = DATA
        self._pending: list[tuple[int, list[tuple[int, int]]]] = []

    def offer(self, *readable: bytes, room: int | tuple[int, ...] = ()) -> None:
        """Add a request: one descriptor for each of `readable`, one for each size in `room`."""
        out = [(self._place(part), len(part)) for part in readable]
        into = [(self._place(b"\xee" * n), n) for n in ((room,) if isinstance(room, int) else room)]
        head = self.driver.add(out, into)
        assert head >= 0
        self._pending.append((head, into))
        self.driver.publish()

    def _place(self, data: bytes) -> int:
        at, self._next = self._next, self._next + len(data)
        assert self._next <= SIZE
        self.ram[at : self._next] = data
        return at

    def answers(self) -> list[tuple[int, bytes]]:
        """Used length and writable part of the requests that the device has completed."""
        used = dict(self.driver.poll())
        done = [(head, into) for head, into in self._pending if head in used]
        self._pending = [item for item in self._pending if item[0] not in used]
        if not self._pending:
            self._next = DATA
        return [(used[head], b"".join(self.ram[at : at + n] for at, n in into)) for head, into in done]

    def ask(self, *readable: bytes, room: int | tuple[int, ...] = ()) -> tuple[int, bytes]:
        """One request from offer to answer."""
        self.offer(*readable, room=room)
        self.serve()
        (answer,) = self.answers()
        return answer

    def serve(self) -> None:
        """Have the device serve what was offered, as a runner would."""
        if not self.lane.native:
            self.device.handle(self.queue)
            return
        while (served := self.lane.serve(1024)) in (lib.VH_S_MORE, lib.VH_S_LEFT):
            if served == lib.VH_S_LEFT:
                self.lane.finish(self.device.process)
            while self.queue.steps is not None:
                self.lane.step()
        assert served == lib.VH_S_IDLE
        self.lane.drain()
