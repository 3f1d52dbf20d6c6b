# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Drivers of packed rings that break the rules; noise in any ring and in inflight regions."""

import os
import random
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.virtqueue.drivers import AVAIL, BASE, INDIRECT, NEXT, USED, WRITE, PackedDriver, Sent, Shared
from vhost.errors import VirtqueueError
from vhost.mem import InflightRegion
from vhost.virtqueue import Queue, RingLayout

pytestmark = pytest.mark.usefixtures("unix_build", "no_leaks")

SIZE = 8
START = 0x8000_8000
# What the tests' regions end with.
END = BASE + 4096 * 4


@pytest.fixture
def ring() -> Iterator[Shared]:
    shared = Shared(RingLayout(SIZE, True), room=512, table_len=16, regions=1)
    yield shared
    shared.close()


def lay(ring: Shared, *descriptors: tuple[int, int, int, int], at: int | None = None, lap: int = 0) -> None:
    """Descriptors: address, length, id, flags without those of the lap."""
    for i, (addr, length, name, flags) in enumerate(descriptors):
        mine = flags if at is not None else flags | (USED if lap else AVAIL)
        place = (ring.desc if at is None else at) + 16 * (i % SIZE if at is None else i)
        ring.put(place, struct.pack("<QIHH", addr, length, name, mine))


def loop(ring: Shared) -> None:
    lay(ring, *[(ring.data, 1, 0, NEXT)] * SIZE)


def long_table(ring: Shared) -> None:
    lay(ring, *[(ring.data, 1, 0, 0)] * 9, at=ring.tables)
    lay(ring, (ring.tables, 9 * 16, 0, INDIRECT))


def long_mixed(ring: Shared) -> None:
    lay(ring, *[(ring.data, 1, 0, 0)] * 6, at=ring.tables)
    lay(ring, *[(ring.data, 1, 0, NEXT)] * 3, (ring.tables, 6 * 16, 0, INDIRECT))


def order(ring: Shared) -> None:
    lay(ring, (ring.data, 1, 0, WRITE | NEXT), (ring.data, 1, 0, 0))


def order_in_table(ring: Shared) -> None:
    lay(ring, (ring.data, 1, 0, WRITE), (ring.data, 1, 0, 0), at=ring.tables)
    lay(ring, (ring.tables, 32, 0, INDIRECT))


def nested(ring: Shared) -> None:
    lay(ring, (ring.data, 1, 0, 0), (ring.tables, 16, 0, INDIRECT), at=ring.tables)
    lay(ring, (ring.tables, 32, 0, INDIRECT))


def indirect_next(ring: Shared) -> None:
    lay(ring, (ring.tables, 16, 0, INDIRECT | NEXT), (ring.data, 1, 0, 0))


def table_empty(ring: Shared) -> None:
    lay(ring, (ring.tables, 0, 0, INDIRECT))


def table_odd(ring: Shared) -> None:
    lay(ring, (ring.tables, 24, 0, INDIRECT))


def table_huge(ring: Shared) -> None:
    lay(ring, (BASE, 0xFFFF_FFF0, 0, INDIRECT))


def table_outside(ring: Shared) -> None:
    lay(ring, (1 << 50, 32, 0, INDIRECT))


def outside(ring: Shared) -> None:
    lay(ring, (0x1000, 16, 0, 0))


def across_all_addresses(ring: Shared) -> None:
    lay(ring, (2**64 - 8, 16, 0, 0))


def longer_than_memory(ring: Shared) -> None:
    lay(ring, (BASE, 0xFFFF_FFFF, 0, WRITE))


CASES: list[tuple[Callable[[Shared], None], str]] = [
    (loop, "loops"),
    (long_table, "more than 8 descriptors"),
    (long_mixed, "more than 8 descriptors"),
    (order, "readable buffer behind a writable one, at index 1"),
    (order_in_table, "readable buffer behind a writable one, at index 1"),
    (nested, "indirect table within an indirect one, at index 1"),
    (indirect_next, "INDIRECT and NEXT set together, at index 0"),
    (table_empty, "indirect table of 0 bytes"),
    (table_odd, "indirect table of 24 bytes"),
    (table_huge, "indirect table of 4294967280 bytes"),
    (table_outside, "32 bytes at guest address 0x4000000000000 are not wholly"),
    (outside, "16 bytes at guest address 0x1000 are not wholly"),
    (across_all_addresses, "16 bytes at guest address 0xfffffffffffffff8 are not wholly"),
    (longer_than_memory, "4294967295 bytes at guest address 0x40000000 are not wholly"),
]


@pytest.mark.parametrize(("build", "words"), CASES, ids=[build.__name__ for build, _ in CASES])
def test_bad_chain_breaks_the_ring(ring: Shared, build: Callable[[Shared], None], words: str) -> None:
    queue = ring.queue(base=START, indirect=True)
    build(ring)
    with pytest.raises(VirtqueueError, match=words):
        queue.pop()
    lay(ring, (ring.data, 1, 0, 0))
    with pytest.raises(VirtqueueError, match=words):  # and it stays broken
        queue.pop()
    assert (queue.popped, queue.base) == (0, START)
    queue.close()


@pytest.mark.parametrize(("build", "words"), CASES, ids=[build.__name__ for build, _ in CASES])
def test_bad_chain_behind_a_good_one(ring: Shared, build: Callable[[Shared], None], words: str) -> None:
    # One lap, so that the bad one begins at the last entry and goes around the end of the ring.
    queue = ring.queue(base=START, indirect=True)
    lay(ring, *[(ring.data, 4, i, 0) for i in range(SIZE - 1)])
    for chain in queue:
        chain.push()
    build(ring)  # where a lap begins; it is moved from there
    bad = [ring.get(ring.desc + 16 * i, 16) for i in range(SIZE)]
    for i, one in enumerate(bad):
        at = (i + SIZE - 1) % SIZE
        flags = struct.unpack("<H", one[14:])[0]
        if i and flags & AVAIL:
            one = one[:14] + struct.pack("<H", flags ^ AVAIL ^ USED)
        ring.put(ring.desc + 16 * at, one)
    with pytest.raises(VirtqueueError, match=words.split(", at")[0]):
        queue.pop()
    assert queue.popped == queue.pushed == SIZE - 1
    queue.close()


def test_indirect_without_the_feature(ring: Shared) -> None:
    queue = ring.queue(base=START)
    lay(ring, (ring.tables, 16, 0, INDIRECT))
    with pytest.raises(VirtqueueError, match="indirect at index 0, which was not negotiated"):
        queue.pop()
    queue.close()


def test_more_than_the_ring_holds(ring: Shared) -> None:
    queue = ring.queue(base=START)
    lay(ring, *[(ring.data, 1, i, 0) for i in range(SIZE)])
    assert len(queue.pop()) == SIZE
    lay(ring, (ring.data, 1, 0, 0), lap=1)  # nothing came back yet
    with pytest.raises(VirtqueueError, match="more than the ring holds"):
        queue.pop()
    queue.close()


@pytest.mark.parametrize("name", [SIZE, 0x7FFF, 0xFFFF])
def test_ids_are_the_drivers_own(ring: Shared, name: int) -> None:
    queue = ring.queue(base=START)
    lay(ring, (ring.data, 1, name, NEXT), (ring.data, 1, name, 0))
    (chain,) = queue.pop()
    chain.push()
    assert struct.unpack("<IHH", ring.get(ring.desc + 8, 8)) == (0, name, AVAIL | USED)
    queue.close()


@pytest.mark.parametrize("base", [0x8000_8008, 0x8008_8000, 0xFFFF_FFFF])
def test_base_outside_the_ring(ring: Shared, base: int) -> None:
    with pytest.raises(VirtqueueError, match=f"base {base:#x} is outside a ring of 8"):
        ring.queue(base=base)


def test_a_new_ring_may_begin_at_zero(ring: Shared) -> None:
    # As user-mode Linux begins, whose driver may have been quick.
    for offered in range(SIZE + 1):
        lay(ring, *[(ring.data, 1, i, 0) for i in range(offered)])
        queue = ring.queue(base=0)
        assert queue.base == START
        assert [chain.head for chain in queue.pop()] == list(range(offered))
        queue.close()


@pytest.mark.parametrize("in_order", [False, True], ids=["any order", "in order"])
@pytest.mark.parametrize("size", range(1, 6))
def test_a_ring_whose_first_lap_is_over_is_not_taken_for_a_new_one(size: int, in_order: bool) -> None:
    """Whatever chains it had, and whatever its driver has made available since."""
    rng = random.Random(size)
    shared = Shared(RingLayout(size, True), room=512, regions=1)
    driver = PackedDriver(shared, event_idx=False, in_order=in_order)
    queue = shared.queue(base=START, in_order=in_order)

    def offer(most: int) -> None:
        pieces = [(shared.data + 16 * k, 1) for k in range(rng.randint(1, most))]
        if driver.add(Sent(0, pieces, []), 0):
            driver.show()

    met = 0
    while met < 100:
        for _ in range(rng.randint(1, size)):
            offer(size)
        chains = list(queue.pop())
        if not in_order:
            rng.shuffle(chains)
        for chain in chains:
            chain.push()
        driver.take()
        if queue.base:
            continue
        met += 1
        for _ in range(rng.randint(0, size)):
            offer(size)
        again = shared.queue(base=0, in_order=in_order)
        assert again.base == 0
        queue.close()
        queue = again
    queue.close()
    shared.close()


def test_no_length_is_no_buffer(ring: Shared) -> None:
    queue = ring.queue(base=START)
    lay(ring, (0x1234, 0, 0, NEXT), (2**64 - 1, 0, 0, NEXT | WRITE), (ring.data, 5, 3, WRITE))
    (chain,) = queue.pop()
    assert (chain.head, chain.readable, chain.writable) == (3, 0, 5)
    chain.push()
    queue.close()


def descriptor(rng: random.Random, ring: Shared, order: str) -> bytes:
    """Mostly right, seldom wholly wrong."""
    name = rng.randrange(ring.layout.size)
    flags = rng.choice([AVAIL, AVAIL, USED])
    if rng.random() < 0.9:
        addr, length, bits = ring.data + rng.randrange(1024), rng.randrange(64), rng.choice([0, WRITE])
        if rng.random() < 0.2:
            addr, length, bits = ring.tables + 16 * rng.randrange(8), 16 * rng.randint(1, 3), INDIRECT
    else:
        addr = rng.choice(
            [
                ring.desc,
                BASE + len(ring.ram) - rng.randrange(32),
                rng.getrandbits(64),
                2**64 - rng.randint(1, 64),
            ]
        )
        length = rng.choice([0, 16, 24, 16 * rng.randrange(20), rng.getrandbits(32), 2**32 - 1])
        bits = rng.choice([NEXT, WRITE, WRITE | NEXT, INDIRECT, rng.getrandbits(16)])
        name = rng.choice([name, rng.getrandbits(16)])
        flags = rng.choice([0, AVAIL, USED, AVAIL | USED])
    if ring.layout.packed:
        return struct.pack("<QIHH", addr, length, name, bits | flags)
    return struct.pack(order + "QIHH", addr, length, bits, name)


def noise(rng: random.Random, ring: Shared, order: str) -> None:
    """Change something of what a driver writes."""
    layout = ring.layout
    for _ in range(rng.randint(1, 4)):
        table, entries = rng.choice([(ring.desc, layout.size), (ring.tables, 16)])
        ring.put(table + 16 * rng.randrange(entries), descriptor(rng, ring, order))
    if rng.random() < 0.3:
        # Not the index of a split ring.
        at = rng.choice([0, 4 + rng.randrange(layout.avail - 6)]) if not layout.packed else rng.choice([0, 2])
        ring.put(ring.avail + at, rng.choice([rng.randbytes(2), bytes(2)]))
    if not layout.packed:
        head = rng.choice([rng.randrange(layout.size)] * 20 + [rng.getrandbits(16)])
        ring.put(ring.avail + 4 + 2 * rng.randrange(layout.size), struct.pack(order + "H", head))


KINDS: dict[str, dict[str, Any]] = {
    "split": {},
    "big-endian": {"big_endian": True},
    "packed": {"packed": True},
    "packed-5": {"packed": True, "size": 5},
}


def serve(rng: random.Random, queue: Queue, held: list[Any]) -> None:
    """What a device may do: all data is touched, so that a sanitizer sees where it is."""
    queue.kicks_off()
    for chain in queue.pop(rng.randint(1, 64)):
        room, size = chain.writable, chain.readable
        if room < 1 << 20 and size < 1 << 20:
            chain.read()
            chain.write(bytes(rng.randint(0, room)))
        held.append(chain)
    rng.shuffle(held)
    for _ in range(rng.randint(0, len(held))):
        held.pop().push()
    queue.kicks_on()


def opened(kind: str) -> tuple[Shared, str, dict[str, Any]]:
    """Memory with a ring full of good descriptors, its byte order, and what its queue has to know."""
    options = dict(KINDS[kind])
    size, packed = options.pop("size", SIZE), options.pop("packed", False)
    ring = Shared(RingLayout(size, packed), room=512, table_len=16, regions=3)
    order = ">" if options else "<"
    for table, entries in ((ring.desc, size), (ring.tables, 16)):
        for i in range(entries):
            fields = (7, AVAIL) if packed else (0, 0)
            ring.put(table + 16 * i, struct.pack(order + "QIHH", ring.data, 16, *fields))
    return ring, order, options | {"base": START if packed else 0}


@pytest.mark.parametrize("record", [False, True], ids=["", "inflight"])
@pytest.mark.parametrize("in_order", [False, True], ids=["any-order", "in-order"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_noise(kind: str, in_order: bool, record: bool) -> None:
    """Random bytes all over ring and tables: chains that are right are served, until the ring breaks."""
    rng = random.Random(f"{kind}{in_order}{record}")
    served = broken = 0
    for _ in range(60):
        ring, order, options = opened(kind)
        size, packed = ring.layout.size, ring.layout.packed
        region, fd = InflightRegion.create(1, size, packed=packed) if record else (None, -1)
        queue = ring.queue(
            indirect=rng.random() < 0.9,
            event_idx=rng.random() < 0.5,
            in_order=in_order,
            inflight=region.part(0, size, packed=packed) if region else 0,
            **options,
        )
        held: list[Any] = []
        index = 0
        try:
            for _ in range(30):
                noise(rng, ring, order)
                if not packed:
                    room = size - (queue.popped - queue.pushed)
                    index = (queue.base + rng.choice([0, 1, 2, room, room, size + 1])) & 0xFFFF
                    ring.put(ring.avail + 2, struct.pack(order + "H", index))
                serve(rng, queue, held)
        except VirtqueueError:
            broken += 1
            assert queue.popped - queue.pushed <= size
        served += queue.pushed
        held.clear()
        queue.close()
        ring.close()
        if region:
            region.close()
            os.close(fd)
    assert broken
    assert served


@pytest.mark.parametrize("kind", ["split", "packed", "packed-5"])
def test_regions_that_lie(kind: str) -> None:
    """An inflight region with some or all bytes random: it is refused, or what it says is served."""
    options = dict(KINDS[kind])
    size, packed = options.pop("size", SIZE), options.pop("packed", False)
    rng = random.Random(f"lies {kind}")
    refused = taken = 0
    for turn in range(600):
        ring = Shared(RingLayout(size, packed), room=512, table_len=16, regions=1)
        region, fd = InflightRegion.create(1, size, packed=packed)
        need = 32 + 32 * size if packed else 16 + 16 * size
        total = region.spec.size
        head = 32 if packed else 16
        if turn % 3 == 0:
            os.pwrite(fd, rng.randbytes(total), 0)
        else:
            lay(ring, *[(ring.data, 4, i, 0) for i in range(size)])
            places = {"base": START if packed else 0, "inflight": region.part(0, size, packed=packed)}
            queue = ring.queue(**places)
            queue.pop(rng.randint(1, size))
            queue.close()
            for _ in range(rng.randint(1, 3)):
                entry = head + (head if packed else 16) * rng.randrange(size)
                at = rng.choice([8, 12, 14, 16, 18, 20, entry, entry + 2, entry + 4, entry + 6])
                value = rng.choice([0, 1, size - 1, size, rng.getrandbits(16), rng.randrange(size)])
                os.pwrite(fd, struct.pack("<H", value), at)
        os.pwrite(fd, b"\1\0", 8)  # a region that is in use
        guard = rng.randbytes(total - need)
        os.pwrite(fd, guard, need)
        try:
            queue = ring.queue(base=START if packed else 0, inflight=region.part(0, size, packed=packed))
        except VirtqueueError as error:
            refused += "inflight region contradicts itself" in str(error)
        else:
            held: list[Any] = []
            try:
                for _ in range(10):
                    lay(ring, *[(ring.data, 4, i, 0) for i in range(size)], lap=rng.randrange(2))
                    serve(rng, queue, held)
            except VirtqueueError:
                pass
            taken += queue.pushed
            held.clear()
            queue.close()
        assert os.pread(fd, len(guard), need) == guard, "written behind its end"
        ring.close()
        region.close()
        os.close(fd)
    assert taken
    assert refused or not packed


@pytest.mark.parametrize("kind", KINDS)
def test_changed_while_it_is_read(kind: str) -> None:
    """Another thread writes to the ring all the time: what a device gets is inside of guest memory."""
    over = threading.Event()
    ring, order, options = opened(kind)

    def scribble() -> None:
        rng = random.Random(kind)
        while not over.is_set():
            noise(rng, ring, order)

    thread = threading.Thread(target=scribble)
    thread.start()
    rng = random.Random(f"reader {kind}")
    served = broken = rounds = 0
    try:
        while rounds < 200 or not served or not broken:
            rounds += 1
            queue = ring.queue(indirect=True, event_idx=True, **options)
            held: list[Any] = []
            try:
                for _ in range(8):
                    if not ring.layout.packed:
                        index = (queue.base + rng.randrange(ring.layout.size // 2)) & 0xFFFF
                        ring.put(ring.avail + 2, struct.pack(order + "H", index))
                    serve(rng, queue, held)
            except VirtqueueError:
                broken += 1
            served += queue.pushed
            held.clear()
            queue.close()
    finally:
        over.set()
        thread.join()
        ring.close()
