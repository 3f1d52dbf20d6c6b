# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A load generator: a block driver in a puppet's pages that keeps so many requests of 4 KiB under way.

A request is a header, a page of data and a status, each in a page and under a reference of its own, as
Linux has it. The chains are made once, so that a request costs the driver little.
"""

import os
import random
import select
import time
from array import array
from dataclasses import dataclass

from vhost._core import ffi, lib
from vhost.protocol import VirtioFeature
from vhost.virtio.blk import SECTOR, BlkFeature, BlkRequest
from vhost.virtqueue import DriverQueue, RingLayout

from .frontend import FEATURES, GRANT, GRANT_BIT, NO_ADVANCE, Frontend, RingPlace, region
from .puppet import Puppet

__all__ = ("BLOCK", "PAGES", "RING_PAGES", "Load", "Run", "Session", "write_image")

PAGE = BLOCK = 4096
SLOTS = 128  # requests that can be under way
SIZE = 512  # entries of the ring
WORDS = PAGE // 8
HEADERS, STATUSES, DATA, PAGES = (
    kind * SLOTS for kind in range(4)
)  # first pages; what the device only reads first
RING_PAGES = 5  # two of descriptors, the avail ring, two of the used ring
# References; data pages have two, since a page that the device only reads is granted read-only.
FIRST, READABLE, REFERENCES = 16, 1024, 2048 - 16
WAIT_SECONDS = 60
UNSET = 0xFF


@dataclass(frozen=True, slots=True)
class Run:
    """What was done in a run.

    :param seconds: from the first request to the last answer.
    """

    requests: int
    seconds: float


def write_image(path: str | os.PathLike[str], blocks: int) -> None:
    """An image in which every block says which one it is."""
    with open(path, "wb") as file:
        for number in range(blocks):
            file.write((number + 1).to_bytes(8, "little") * (BLOCK // 8))


class Load:
    """Requests in a puppet's pages, for one session after the other; each has a ring of its own.

    :param puppet: with PAGES pages and RING_PAGES for each session.
    :param image: the device's, to compare with; it has `blocks` blocks.
    """

    def __init__(self, puppet: Puppet, image: int, blocks: int) -> None:
        self._image = image
        self.domid = puppet.domid
        for page in range(puppet.pages):
            puppet.grant(FIRST + page, page, read_only=page < STATUSES)
        for page in range(DATA, PAGES):
            puppet.grant(READABLE + page, page, read_only=True)
        self.memory = puppet.memory[:]
        self.words = self.memory.cast("Q")
        order = list(range(blocks))
        random.Random(1).shuffle(order)
        self.order = array("Q", order)
        #: Where in the order the next request is, and how many have been written.
        self.next = self.written = 0
        self._runs = 0
        self._reads = [
            _chain((HEADERS, 16, 0), (DATA, PAGE, 1), (STATUSES, 1, 1), slot=k) for k in range(SLOTS)
        ]
        self._writes = [
            _chain((HEADERS, 16, 0), (READABLE - FIRST + DATA, PAGE, 0), (STATUSES, 1, 1), slot=k)
            for k in range(SLOTS)
        ]

    def close(self) -> None:
        """Takes its hands off the puppet's memory."""
        self.words.release()
        self.memory.release()

    def prepare(self, depth: int, write: bool) -> list[object]:
        """Data that is nowhere in the image; returns the chains of all slots."""
        self._runs += 1
        for slot in range(depth):
            self.words[(HEADERS + slot) * WORDS] = BlkRequest.OUT if write else BlkRequest.IN
            word = (1 << 63 | self._runs << 32 | slot).to_bytes(8, "little")
            self.memory[(DATA + slot) * PAGE :][:PAGE] = word * WORDS
        return self._writes if write else self._reads

    def compare(self, blocks: list[int]) -> None:
        """Each slot's last request: what is in the guest's page is what is in the image.

        :param blocks: of these requests.
        """
        for slot, block in enumerate(blocks):
            page = self.memory[(DATA + slot) * PAGE :][:PAGE]
            assert page == os.pread(self._image, BLOCK, block * BLOCK), (
                f"request {slot}: block {block} differs"
            )


class Session:
    """A session with a device, and its ring.

    :param frontend: of a connection that is new.
    :param number: of the session, from 0.
    """

    def __init__(self, load: Load, frontend: Frontend, number: int) -> None:
        self._load, self._frontend = load, frontend
        layout, first = RingLayout(SIZE), PAGES + number * RING_PAGES
        desc, avail, used = first, first + 2, first + 3
        memory = load.memory
        memory[first * PAGE :][: RING_PAGES * PAGE] = bytes(RING_PAGES * PAGE)
        frontend.negotiate(FEATURES | BlkFeature.FLUSH | VirtioFeature.RING_EVENT_IDX)
        frontend.share([region(load.domid, address(0), REFERENCES * PAGE, GRANT | NO_ADVANCE)])
        frontend.start(RingPlace(SIZE, address(desc), address(avail), address(used)))
        self._queue = DriverQueue(
            layout,
            memory[desc * PAGE :][: layout.descriptor],
            memory[avail * PAGE :][: layout.avail],
            memory[used * PAGE :][: layout.used],
            event_idx=True,
        )

    def stop(self) -> None:
        """Stops the ring."""
        self._frontend.stop()

    def run(self, depth: int, seconds: float, *, write: bool) -> Run:
        """Keeps `depth` requests under way. Checks length and status of all, the data of the last ones."""
        load, queue, driver = self._load, self._queue, self._queue._d
        words, memory, order, blocks = load.words, load.memory, load.order, len(load.order)
        chains = load.prepare(depth, write)
        slot_of, last = [0] * SIZE, [0] * depth
        number, at, length = load.written, load.next, 1 if write else PAGE + 1
        call = self._frontend.call_fd()
        poller = select.poll()
        poller.register(call, select.POLLIN)
        free, done = list(range(depth)), 0
        start = now = time.perf_counter()
        end = start + seconds
        while now < end or len(free) < depth:
            if now < end:
                for slot in free:
                    block = last[slot] = order[at]
                    at = at + 1 if at + 1 < blocks else 0
                    words[(HEADERS + slot) * WORDS + 1] = block * (BLOCK // SECTOR)
                    memory[(STATUSES + slot) * PAGE] = UNSET
                    if write:
                        number += 1
                        words[(DATA + slot) * WORDS] = number
                    slot_of[lib.vh_driver_add(driver, chains[slot], 3)] = slot
                free.clear()
                if queue.publish():
                    self._frontend.kick()
            used = queue.poll()
            while not used:
                if not queue.calls_on():
                    assert poller.poll(WAIT_SECONDS * 1000), "no answer"
                    os.eventfd_read(call)
                used = queue.poll()
            for head, n in used:
                slot = slot_of[head]
                assert n == length
                assert not memory[(STATUSES + slot) * PAGE]
                free.append(slot)
            done += len(used)
            now = time.perf_counter()
        load.written, load.next = number, at
        load.compare(last)
        return Run(done, now - start)


def _chain(*parts: tuple[int, int, int], slot: int) -> object:
    return ffi.new("struct vh_buf[]", [(address(page + slot), n, write) for page, n, write in parts])


def address(page: int) -> int:
    """Of a page that is granted under its usual reference."""
    return GRANT_BIT | (FIRST + page) << 12
