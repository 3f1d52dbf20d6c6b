# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The device's side of every kind of ring, with random requests, against drivers that go by the bytes alone.

``VHOST_REQUESTS`` is how many there are in all, a few thousand by default.
"""

import os
import random
from typing import Any

import pytest

from tests.virtqueue.drivers import PackedDriver, Pieces, Sent, Shared, SplitDriver
from vhost.virtqueue import Chain, RingLayout

REQUESTS = int(os.environ.get("VHOST_REQUESTS", "8000"))
ROOM = 512

KINDS = [
    pytest.param({}, 1, 0, id="split-1"),
    pytest.param({}, 4, 65530, id="split-4"),
    pytest.param({}, 64, 0, id="split-64"),
    pytest.param({}, 256, 65000, id="split-256"),
    pytest.param({"big_endian": True}, 16, 65500, id="big-endian-16"),
    pytest.param({"packed": True}, 1, 0, id="packed-1"),
    pytest.param({"packed": True}, 2, 3, id="packed-2"),
    pytest.param({"packed": True}, 7, 0, id="packed-7"),
    pytest.param({"packed": True}, 64, 100, id="packed-64"),
    pytest.param({"packed": True}, 333, 0, id="packed-333"),
]
MASKS = [(i, e, o) for i in (False, True) for e in (False, True) for o in (False, True)]
EACH = -(-REQUESTS // (len(KINDS) * len(MASKS)))

pytestmark = [pytest.mark.usefixtures("unix_build"), pytest.mark.timeout(max(120, REQUESTS // 1000))]


class Traffic:
    """A driver, a device, and what each request was."""

    def __init__(
        self, kind: dict[str, Any], size: int, start: int, indirect: bool, event_idx: bool, in_order: bool
    ) -> None:
        self.rng = random.Random(f"{kind}{size}{indirect}{event_idx}{in_order}{REQUESTS}")
        self.packed = kind.get("packed", False)
        self.table_len = 10 if indirect else 0
        self.longest = min(size, 12) if not indirect else max(12, min(size, 12))
        self.shared = Shared(RingLayout(size, self.packed), room=ROOM, table_len=self.table_len)
        order = ">" if kind.get("big_endian") else "<"
        made = PackedDriver if self.packed else SplitDriver
        self.driver: SplitDriver | PackedDriver = made(
            self.shared, start, event_idx=event_idx, in_order=in_order, order=order
        )
        self.queue = self.shared.queue(
            base=self.driver.base,
            event_idx=event_idx,
            indirect=indirect,
            in_order=in_order,
            big_endian=kind.get("big_endian", False),
            max_chain=max(size, 12),
        )
        self.places = list(range(size))
        self.place_of: dict[int, int] = {}
        self.payload: dict[int, bytes] = {}
        self.answer: dict[int, bytes] = {}  # what the device wrote
        self.sent = self.served = self.back = 0
        self.held: list[tuple[int, Chain]] = []

    # ---- the driver ----

    def pieces(self, gpa: int, n: int, bytes_: int) -> Pieces:
        """Some buffers from an address on, one behind the other or with holes."""
        made = []
        for k in range(n):
            size = self.rng.choice([0, 1, 2, 7, 8, 24])
            if k + 1 == n:
                size = max(size, bytes_)
            made.append((gpa, size))
            gpa += size + self.rng.choice([0, 0, 5])
        return made

    def send(self) -> bool:
        if not self.places or not self.driver.free:
            return False
        rng = self.rng
        n = rng.randint(1, self.longest)
        inside = 0
        if self.table_len and (n > self.driver.free or rng.random() < 0.6):
            n = min(n, self.table_len)
            inside = n if self.packed else rng.randint(1, n)
        n = n if inside else min(n, self.driver.size)
        readable = rng.randint(1, n)
        place = self.places[0]
        at = self.shared.data + ROOM * place + rng.randint(0, 3)
        parts = self.pieces(at, readable, 4), self.pieces(at + 250, n - readable, 0)
        sent = Sent(self.sent, *parts)
        if not self.driver.add(sent, inside):
            return False
        self.places.pop(0)
        self.place_of[self.sent] = place
        total = sum(size for _, size in sent.readable)
        data = self.sent.to_bytes(4, "little") + rng.randbytes(total)
        self.payload[self.sent] = data = data[:total]
        for gpa, size in sent.readable:
            self.shared.put(gpa, data[:size])
            data = data[size:]
        for gpa, size in sent.writable:
            self.shared.put(gpa, b"\xee" * size)
        self.sent += 1
        return True

    def collect(self) -> None:
        for sent, length in self.driver.take():
            wanted = self.answer.pop(sent.number)
            assert length == len(wanted)
            found = b"".join(self.shared.get(gpa, size) for gpa, size in sent.writable)
            assert found == wanted + b"\xee" * (sent.room - length)
            self.places.append(self.place_of.pop(sent.number))
            self.rng.shuffle(self.places)
            self.back += 1

    # ---- the device ----

    def pop(self) -> bool:
        batch = self.queue.pop(self.rng.randint(1, 64))
        for chain in batch:
            data = chain.read()
            number = int.from_bytes(data[:4], "little")
            assert data == self.payload.pop(number)
            assert number == self.served, "taken in another order than offered"
            self.served += 1
            self.held.append((number, chain))
        return bool(batch)

    def finish(self, n: int) -> int:
        """Complete some in any order and return each by itself; calls that are due."""
        calls = 0
        for _ in range(n):
            number, chain = self.held.pop(self.rng.randrange(len(self.held)))
            part = self.rng.choice([chain.writable, chain.writable, self.rng.randint(0, chain.writable)])
            self.answer[number] = self.rng.randbytes(part)
            assert chain.write(self.answer[number]) == part
            before = self.driver.used_place()
            chain.push()
            after = self.driver.used_place()
            calls += before != after and (not self.called or self.driver.wants_call(before, after))
            self.called |= before != after
        return calls

    called = False


@pytest.mark.parametrize(("indirect", "event_idx", "in_order"), MASKS)
@pytest.mark.parametrize(("kind", "size", "start"), KINDS)
def test_traffic(
    kind: dict[str, Any], size: int, start: int, indirect: bool, event_idx: bool, in_order: bool
) -> None:
    t = Traffic(kind, size, start, indirect, event_idx, in_order)
    rng, queue, driver = t.rng, t.queue, t.driver
    device_sleeps = driver_sleeps = False
    calls = 0
    while t.back < EACH:
        if not driver_sleeps or rng.random() < 0.1:
            driver.ask(False)
            for _ in range(rng.choice([1, 3, size])):
                if t.sent == EACH or not t.send():
                    break
            if driver.show():
                device_sleeps = False
            if rng.random() < 0.7:
                t.collect()
            driver.ask(True)
            driver_sleeps = driver.used_place() == driver.seen and (t.sent == EACH or t.sent - t.back > 0)
        if not device_sleeps:
            queue.kicks_off()
            while rng.random() < 0.7 and t.pop():
                pass
            due = t.finish(rng.randint(0, len(t.held)))
            calls += due
            assert queue.calls == calls
            if due:
                driver_sleeps = False
            if not t.held:
                device_sleeps = not queue.kicks_on()
        if device_sleeps and driver_sleeps:
            assert not queue.available(), "a kick was lost"
            assert driver.used_place() == driver.seen, "a call was lost"
            driver_sleeps = False
    assert (queue.popped, queue.pushed) == (EACH, EACH)
    assert not t.answer
    assert not t.payload
    assert driver.free == size
    t.held.clear()
    queue.close()
    t.shared.close()
