# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest with a network card: rings and buffers in memory of its own, no socket, no thread."""

import mmap
import os
from typing import NamedTuple

from vhost._core import lib
from vhost.devices.net import Counts, Net
from vhost.mem import Memory, RegionSpec
from vhost.virtio.net import NetFeature, NetHeader
from vhost.virtqueue import DriverQueue, Lane, Queue, RingLayout

RING = 128
SIZE = 16 << 20
VERSION_1 = 1 << 32
PLAIN = VERSION_1 | NetFeature.MRG_RXBUF

_RING_SPACE = 64 << 10  # of each queue's rings
_BUFFERS = 2 << 20


class Received(NamedTuple):
    """A frame that has arrived, and the used lengths of its buffers."""

    header: NetHeader
    frame: bytes
    lengths: list[int]


class _Ring:
    def __init__(self, guest: "Guest", index: int, packed: bool, base: int | None = None) -> None:
        layout = RingLayout(RING, packed)
        space = index * _RING_SPACE
        places = [
            (space + at, size)
            for at, size in ((0, layout.descriptor), (16384, layout.avail), (32768, layout.used))
        ]
        for at, size in places:
            guest.ram[at : at + size] = bytes(size)
        parts = [memoryview(guest.ram)[at : at + size] for at, size in places]
        self.driver = DriverQueue(layout, *parts, big_endian=guest.big_endian)
        rings = [guest.memory.ring(at, size) for at, size in places]
        if base is None:
            base = 0x80008000 if packed else 0
        self.queue = Queue(
            index,
            layout,
            guest.memory,
            (rings[0], rings[1], rings[2]),
            base=base,
            big_endian=guest.big_endian,
        )
        self.lane = Lane(self.queue, guest.net.path(self.queue), -1)


class Guest:
    """A guest at a network device; all queues are enabled unless `enabled` is smaller.

    :param features: what its driver has negotiated; with CTRL_VQ it has a control queue.
    :param enabled: pairs that are in use.
    :param big_endian: its driver is a legacy one on a big-endian machine.
    """

    def __init__(
        self,
        net: Net,
        *,
        packed: bool = False,
        features: int = PLAIN,
        enabled: int | None = None,
        big_endian: bool = False,
    ) -> None:
        self.net = net
        fd = os.memfd_create("guest")
        os.ftruncate(fd, SIZE)
        self.ram = mmap.mmap(fd, SIZE)
        self.memory = Memory()
        self.memory.replace([(RegionSpec(0, SIZE, 0, 0), fd)])
        self.big_endian = big_endian
        self.header = 12 if features & (VERSION_1 | NetFeature.MRG_RXBUF) else 10
        net.negotiated(features)
        control = bool(features & NetFeature.CTRL_VQ)
        pairs = (net.num_queues - 1) // 2 if features & NetFeature.MQ or not control else 1
        self._rings = [_Ring(self, index, packed) for index in range(2 * pairs + control)]
        for index in range(len(self._rings)):
            net.set_enabled(index, enabled is None or index // 2 < enabled)
        #: The device may have written a frame that it then dropped.
        self.careless = False
        self._next = _BUFFERS
        self._offered: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def _place(self, data: bytes) -> tuple[int, int]:
        if self._next + len(data) > SIZE:
            self._next = _BUFFERS
        at, self._next = self._next, self._next + len(data)
        self.ram[at : self._next] = data
        return at, len(data)

    # ---- sending ----

    def send(self, frame: bytes, *, header: NetHeader | None = None, pair: int = 0) -> None:
        """Send a frame, and see that the device has taken it."""
        head = (header or NetHeader()).pack(self.header, big_endian=self.big_endian)
        self.send_raw(head, frame, pair=pair)

    def send_raw(self, *parts: bytes, pair: int = 0) -> None:
        """Send a chain with these readable buffers."""
        ring = self._rings[2 * pair + 1]
        assert ring.driver.add([self._place(part) for part in parts], []) >= 0
        ring.driver.publish()
        self.serve(2 * pair + 1)
        assert [length for _, length in ring.driver.poll()] == [0]

    # ---- receiving ----

    def offer(self, *rooms: int | tuple[int, ...], pair: int = 0) -> None:
        """Give the device receive buffers, each of these sizes or in descriptors of these sizes."""
        ring = self._rings[2 * pair]
        for room in rooms:
            pieces = (room,) if isinstance(room, int) else room
            into = [self._place(b"\xee" * size) for size in pieces]
            head = ring.driver.add([], into)
            assert head >= 0
            self._offered[2 * pair, head] = into
        ring.driver.publish()

    @property
    def waiting(self) -> int:
        """Receive buffers that are not used yet."""
        return len(self._offered)

    def received(self, pair: int = 0) -> list[Received]:
        """The frames that have arrived."""
        ring = self._rings[2 * pair]
        self.serve(2 * pair)
        frames, left, data, lengths = [], 0, b"", list[int]()
        for head, length in ring.driver.poll():
            pieces = self._offered.pop((2 * pair, head))
            whole = b"".join(self.ram[at : at + size] for at, size in pieces)
            assert self.careless or whole[length:] == b"\xee" * (len(whole) - length)  # no byte too many
            if not left:
                left = self._header(whole).num_buffers if self.header == 12 else 1
                data, lengths = b"", []
            data += whole[:length]
            lengths.append(length)
            left -= 1
            if not left:
                frames.append(Received(self._header(data), data[self.header :], lengths))
        assert not left
        return frames

    def _header(self, data: bytes) -> NetHeader:
        return NetHeader.unpack(data[: self.header], big_endian=self.big_endian)

    def frames(self, pair: int = 0) -> list[bytes]:
        """Likewise, without their headers."""
        return [frame for _, frame, _ in self.received(pair)]

    # ---- the control queue ----

    def command(self, *parts: bytes, room: int = 1) -> bytes:
        """Send a command in these readable buffers; returns what the device has written of `room` bytes."""
        ring = self._rings[-1]
        place = self._place(b"\xee" * max(room, 1))
        head = ring.driver.add([self._place(part) for part in parts], [(place[0], room)] if room else [])
        assert head >= 0
        ring.driver.publish()
        self.net.handle(ring.queue)
        ((_, length),) = ring.driver.poll()
        assert self.ram[place[0] + length : sum(place)] == b"\xee" * (place[1] - length)
        return self.ram[place[0] : place[0] + length]

    # ---- the device's side ----

    def serve(self, index: int) -> None:
        """Serve a queue as a runner would."""
        lane = self._rings[index].lane
        lane.cdata.look = 1
        while lane.busy():
            lane.cdata.look = 0
            served = lane.serve(1024)
            if served == lib.VH_S_LEFT:
                lane.finish(self.net.process)
            else:
                assert served in (lib.VH_S_MORE, lib.VH_S_IDLE)

    def event_fd(self, index: int) -> int:
        """What a runner waits for besides kicks, -1: nothing."""
        return self._rings[index].lane.event_fd

    def counts(self, index: int) -> Counts:
        """What the device has counted."""
        return self.net.counts(index)

    def held(self, index: int) -> int:
        """Chains that the device has and that are not on the ring."""
        queue = self._rings[index].queue
        return queue.popped - queue.pushed

    def restart(self, index: int, *, anew: bool) -> None:
        """Stop a queue, and start it where it was, or anew as another driver does."""
        ring = self._rings[index]
        self.net.stop(index)
        base = None if anew else ring.queue.base
        ring.queue.close()
        self._rings[index] = _Ring(self, index, ring.queue.packed, base)
        self.net.set_enabled(index, True)

    def close(self) -> None:
        """Stop the queues; the device goes on."""
        for ring in self._rings:
            self.net.stop(ring.queue.index)
            assert ring.queue.popped == ring.queue.pushed
            ring.queue.close()
