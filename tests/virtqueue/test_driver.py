# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The driver's side of a split ring, alone and against the device's side."""

import random
import struct

import pytest

from tests.virtqueue.guest import AVAIL, BASE, DATA, DESC, USED, Guest
from vhost.errors import VirtqueueError
from vhost.virtqueue import DriverQueue, RingLayout

TABLES = DATA + 0x20000


def driver(g: Guest, *, event_idx: bool = False, table_len: int = 0) -> DriverQueue:
    view = memoryview(g.ram)

    def part(gpa: int, n: int) -> memoryview:
        return view[gpa - BASE : gpa - BASE + n]

    size = g.layout.size
    return DriverQueue(
        g.layout,
        part(DESC, g.layout.descriptor),
        part(AVAIL, g.layout.avail),
        part(USED, g.layout.used),
        event_idx=event_idx,
        tables=part(TABLES, 16 * size * table_len) if table_len else None,
        tables_gpa=TABLES if table_len else 0,
        table_len=table_len,
    )


def finish(g: Guest, d: DriverQueue) -> None:
    del d
    g.queue.close()
    g.memory.clear()


def test_chain_reaches_the_ring_when_published() -> None:
    g = Guest(4)
    d = driver(g)
    assert d.add([(DATA, 16), (DATA + 64, 8)], [(DATA + 128, 4)]) == 0
    assert not g.queue.available()
    assert d.publish() is True
    (chain,) = g.queue.pop()
    assert (chain.readable, chain.writable, d.free) == (24, 4, 1)
    chain.wrote(3)
    chain.push()
    assert d.poll() == [(0, 3)]
    assert d.free == 4
    finish(g, d)


def test_full_ring_and_chains_that_never_fit() -> None:
    g = Guest(4)
    d = driver(g)
    assert d.add([(DATA, 1)] * 3, []) == 0
    assert d.add([(DATA, 1)] * 2, []) == -1
    assert d.add([(DATA, 1)], []) >= 0
    assert d.add([(DATA, 1)], []) == -1
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"{count} buffers in a chain; this ring takes 1 to 4"):
            d.add([(DATA, 1)] * count, [])
    finish(g, d)


def test_indirect_chains_take_one_descriptor() -> None:
    g = Guest(4, indirect=True, max_chain=8)
    d = driver(g, table_len=8)
    heads = [d.add([(DATA + 8 * k, 8) for k in range(7)], [(DATA + 256, 8)]) for _ in range(4)]
    assert sorted(heads) == [0, 1, 2, 3]
    assert d.add([(DATA, 8)], []) == -1
    d.publish()
    assert [(c.readable, c.writable) for c in g.queue.pop()] == [(56, 8)] * 4
    finish(g, d)


@pytest.mark.parametrize(
    "answer", [struct.pack("<II", 1, 0), struct.pack("<II", 4, 0), struct.pack("<II", 2**31, 0)]
)
def test_device_returns_what_it_was_not_given(answer: bytes) -> None:
    g = Guest(4)
    d = driver(g)
    assert d.add([(DATA, 1)], []) == 0
    d.publish()
    g.put(USED + 4, answer)
    g.put(USED + 2, b"\1\0")
    with pytest.raises(VirtqueueError, match="not in flight"):
        d.poll()
    finish(g, d)


def test_device_runs_ahead() -> None:
    g = Guest(4)
    d = driver(g)
    g.put(USED + 2, struct.pack("<H", 5))
    with pytest.raises(VirtqueueError, match="more than it was given"):
        d.poll()
    finish(g, d)


def test_device_returns_a_chain_twice() -> None:
    g = Guest(4)
    d = driver(g)
    d.add([(DATA, 1)], [])
    d.publish()
    g.put(USED + 4, struct.pack("<IIII", 0, 0, 0, 0))
    g.put(USED + 2, b"\2\0")
    with pytest.raises(VirtqueueError, match="not in flight"):
        d.poll()
    finish(g, d)


def test_device_overwrites_links() -> None:
    # Free descriptors are kept in the driver's own memory: what is in the shared table does not matter.
    g = Guest(4)
    d = driver(g)
    head = d.add([(DATA, 1)] * 3, [])
    d.publish()
    g.put(DESC, b"\xff" * 64)
    g.put(USED + 4, struct.pack("<II", head, 0))
    g.put(USED + 2, b"\1\0")
    assert d.poll() == [(head, 0)]
    assert d.add([(DATA, 1)] * 4, []) >= 0
    finish(g, d)


def test_kicks_and_calls_without_event_idx() -> None:
    g = Guest(4)
    d = driver(g)
    g.queue.kicks_off()
    d.add([(DATA, 1)], [])
    assert d.publish() is False
    g.queue.kicks_on()
    d.add([(DATA, 1)], [])
    assert d.publish() is True
    d.calls_off()
    g.queue.pop().push()
    assert g.queue.calls == 0
    assert d.calls_on() is True
    d.poll()
    assert d.calls_on() is False
    finish(g, d)


def test_kicks_and_calls_with_event_idx() -> None:
    g = Guest(8, event_idx=True)
    d = driver(g, event_idx=True)
    d.add([(DATA, 1)], [])
    assert d.publish() is True
    d.add([(DATA, 1)], [])
    assert d.publish() is False  # avail_event is still 0
    g.queue.pop().push()
    assert g.queue.kicks_on() is False
    d.add([(DATA, 1)], [])
    assert d.publish() is True
    assert d.calls_on() is True
    d.poll()
    assert d.calls_on() is False
    g.queue.pop().push()
    assert g.queue.calls == 2
    finish(g, d)


def test_memory_too_small() -> None:
    layout = RingLayout(4)
    with pytest.raises(ValueError, match="avail memory has 13 bytes; a ring of 4 needs 14"):
        DriverQueue(layout, memoryview(bytearray(64)), memoryview(bytearray(13)), memoryview(bytearray(38)))


@pytest.mark.parametrize("size", [0, 3, 65536, -4])
def test_ring_sizes_that_are_none(size: int) -> None:
    with pytest.raises(ValueError, match="power of two from 1 to 32768"):
        RingLayout(size)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("size", [1, 4, 64])
def test_random_traffic_loses_and_mixes_nothing(size: int, indirect: bool, event_idx: bool) -> None:
    """Random chains and batch sizes, completion out of order: each request is answered once, and rightly."""
    rng = random.Random(size * 4 + indirect * 2 + event_idx)
    g = Guest(size, indirect=indirect, event_idx=event_idx, max_chain=8, regions=4)
    d = driver(g, event_idx=event_idx, table_len=8 if indirect else 0)
    slots = list(range(size))
    flying: dict[int, tuple[int, bytes, int]] = {}
    held = []
    sent = answered = 0
    while answered < 3000:
        while slots and sent < 3000 and rng.random() < 0.9:
            slot = slots[-1]
            at = DATA + 0x400 * slot
            data = rng.randbytes(rng.randint(1, 200))
            cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randint(0, 3)))
            parts = [(a, b) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
            room = rng.randint(1, 300)
            if 1 + len(parts) > (8 if indirect else size):
                parts = parts[:0]
                data = b""
            readable = [(at + a, b - a) for a, b in parts]
            g.put(at, data)
            head = d.add(readable, [(at + 0x200, room)])
            if head < 0:
                break
            slots.pop()
            assert head not in flying
            flying[head] = (slot, data, room)
            sent += 1
        d.publish()
        held += list(g.queue.pop(rng.randint(1, 64)))
        rng.shuffle(held)
        for _ in range(rng.randint(0, len(held))):
            chain = held.pop()
            answer = chain.read()[::-1]
            assert chain.write(answer) == min(len(answer), chain.writable)
            chain.push()
        for head, written in d.poll(rng.randint(1, 64)):
            slot, data, room = flying.pop(head)
            assert g.get(DATA + 0x400 * slot + 0x200, written) == data[::-1][:room]
            assert written == min(len(data), room)
            slots.append(slot)
            answered += 1
    assert not flying
    assert (g.queue.popped, g.queue.pushed) == (3000, 3000)
    finish(g, d)
