# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Memory that is taken away from under rings and brought back: they rest, and go on where they were."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.backend.echo import Echo
from tests.backend.peer import (
    FEATURES,
    PROTOCOL_FEATURES,
    RAM_SIZE,
    USER,
    DriverRing,
    Peer,
    footprint,
    readable,
)
from tests.backend.serving import Serving
from vhost.protocol import (
    AddMemReg,
    GetInflightFd,
    GetQueueNum,
    ProtocolFeature,
    RemMemReg,
    SetMemTable,
    SetVringEnable,
    SetVringKick,
    VirtioFeature,
)
from vhost.virtqueue import Batch, Queue

KINDS = {"split": VirtioFeature(0), "packed": VirtioFeature.RING_PACKED}


def ready(peer: Peer, kind: VirtioFeature, *, recorded: bool = False) -> DriverRing:
    """From nothing to a running ring."""
    peer.negotiate(FEATURES | kind, PROTOCOL_FEATURES | ProtocolFeature.INFLIGHT_SHMFD)
    peer.share()
    if recorded:
        os.close(peer.ask(GetInflightFd(0, 0, 2, 256)).take_fd())
    ring = peer.ring()
    peer.start(ring)
    return ring


def take(peer: Peer) -> None:
    peer.do(RemMemReg(peer.region()))


def add(peer: Peer) -> None:
    peer.do(AddMemReg(peer.region()), [peer.ram])


def replace(peer: Peer) -> None:
    peer.do(SetMemTable((peer.region(),)), [peer.ram])


def mapped() -> int:
    return sum("memfd:peer-ram" in line for line in footprint()[1])


@pytest.mark.parametrize("recorded", [False, True], ids=["", "inflight"])
@pytest.mark.parametrize("bring", [add, replace])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_ring_goes_on_with_its_memory(
    server: Serving, kind: VirtioFeature, bring: Callable[[Peer], None], recorded: bool
) -> None:
    with server.connect() as peer:
        ring = ready(peer, kind, recorded=recorded)
        for n in range(20):
            assert ring.request(bytes([1, n])) == bytes([n, 1])
            held = mapped()
            take(peer)
            assert mapped() == held - 1
            ring.add(bytes([2, n]), 64)
            ring.kick_it()
            peer.value(GetQueueNum())
            assert not ring.driver.poll()
            bring(peer)
            assert ring.answer() == bytes([n, 2])
        assert not readable(ring.err, 0)
    server.lines.wait("ring 0 rests until its memory is there: descriptor table", level="INFO")
    assert not server.lines.having("broken", "ERROR")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_ring_that_rests_says_where_it_is(server: Serving, kind: VirtioFeature) -> None:
    with server.connect() as peer:
        ring = ready(peer, kind)
        for _ in range(3):
            ring.request(b"a")
        take(peer)
        ring.add(b"later", 64)
        base = peer.base()
        assert base == (0x8006_8006 if kind else 3)
        peer.refused(SetVringKick(0), [ring.kick])  # nothing holds its addresses
        server.lines.wait("refused: SET_VRING_KICK.*descriptor table", level="WARNING")
        add(peer)
        assert peer.base() == base
        peer.do(SetVringKick(0), [ring.kick])
        assert ring.answer() == b"retal"
        assert peer.base() == (0x8008_8008 if kind else 4)


def test_a_ring_rests_until_all_its_parts_are_there(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        take(peer)
        parts = [peer.region(peer.gpa + at, n, USER + at, at) for at, n in ((0x2000, 0xFE000), (0, 0x2000))]
        peer.do(AddMemReg(parts[0]), [peer.ram])
        peer.do(SetVringEnable(0, 0))
        peer.do(SetVringEnable(0, 1))
        ring.add(b"abc", 64)
        assert not readable(ring.call, 0.05)
        peer.do(AddMemReg(parts[1]), [peer.ram])
        assert ring.answer() == b"cba"
        peer.do(RemMemReg(parts[0]))  # its buffers and its used ring
        ring.add(b"def", 64)
        peer.do(AddMemReg(parts[0]), [peer.ram])
        assert ring.answer() == b"fed"
        assert not readable(ring.err, 0)


class Holder(Echo):
    """Keeps what it takes until it is told to answer, from another thread or while it is served."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Batch] = []
        self.answers = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self, queue: Queue) -> None:
        super().start(queue)
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError:
            self.loop = None

    def handle(self, queue: Queue) -> float | None:
        while batch := queue.pop():
            self.kept.append(batch)
        if self.answers.is_set():
            self.answer()
        return 0.01

    def answer(self) -> None:
        for batch in self.kept:
            for chain in batch:
                self.process(chain)
            batch.push()
        self.kept.clear()

    def answer_now(self) -> None:
        """While no thread runs the ring, or in that of the event loop."""
        if self.loop is None:
            self.answer()
        else:
            done = threading.Event()
            self.loop.call_soon_threadsafe(lambda: (self.answer(), done.set()))
            assert done.wait(5)


@pytest.fixture(params=["threads", "asyncio"])
def holding(unix_build: None, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    before = footprint()
    with Serving(Holder(), request.param, tmp_path / "socket") as serving:
        yield serving
    assert footprint() == before


def gather(ring: DriverRing, count: int) -> set[bytes]:
    return {ring.answer() for _ in range(count)}


def hold(peer: Peer, ring: DriverRing, holder: Holder) -> set[bytes]:
    """Requests that the device has; what it will answer."""
    words = [b"one", b"two", b"three"]
    for page, word in enumerate(words):
        ring.add(word, 64, page=page)
    ring.kick_it()
    while sum(map(len, holder.kept)) < len(words):
        peer.value(GetQueueNum())
    return {word[::-1] for word in words}


@pytest.mark.parametrize("recorded", [False, True], ids=["", "inflight"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("late", [False, True], ids=["while away", "after it"])
def test_what_a_device_holds_is_not_lost(
    holding: Serving, kind: VirtioFeature, late: bool, recorded: bool
) -> None:
    holder = holding.device
    assert isinstance(holder, Holder)
    with holding.connect() as peer:
        ring = ready(peer, kind, recorded=recorded)
        for _ in range(5):
            words = hold(peer, ring, holder)
            take(peer)
            if not late:
                used = bytes(ring.memory(0x2000, 64))
                holder.answer_now()
                assert bytes(ring.memory(0x2000, 64)) == used
                assert not ring.driver.poll()
            add(peer)
            holder.answers.set()
            assert gather(ring, len(words)) == words
            assert ring.request(b"on") == b"no"
            holder.answers.clear()
        assert not readable(ring.err, 0)
        assert peer.base() == (0x8008_8008 if kind else 20)
    assert not holding.lines.having("", "ERROR")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_ring_ends_while_its_memory_is_away_and_its_device_holds_chains(
    holding: Serving, kind: VirtioFeature
) -> None:
    holder = holding.device
    assert isinstance(holder, Holder)
    with holding.connect() as peer:
        ring = ready(peer, kind)
        hold(peer, ring, holder)
        take(peer)
        assert peer.base() == (0x8000_8006 if kind else 3)
        holding.lines.wait("has not returned 3 of 3 chains", level="ERROR")
        holder.answer_now()
        assert mapped() == 1  # the peer's own
        assert not ring.driver.poll()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_a_device_holds_waits_while_its_ring_is_disabled(holding: Serving, kind: VirtioFeature) -> None:
    holder = holding.device
    assert isinstance(holder, Holder)
    with holding.connect() as peer:
        ring = ready(peer, kind)
        words = hold(peer, ring, holder)
        peer.do(SetVringEnable(0, 0))
        assert holder.events[-1] == "stop 0"  # when it could have answered
        before = bytes(ring.memory(0, 0x3000))
        holder.answer_now()
        assert bytes(ring.memory(0, 0x3000)) == before
        peer.do(SetVringEnable(0, 1))
        assert gather(ring, len(words)) == words
    assert not holding.lines.having("", "ERROR")


def test_other_memory_that_goes_takes_no_answers_with_it(holding: Serving) -> None:
    holder = holding.device
    assert isinstance(holder, Holder)
    with holding.connect() as peer:
        ring = ready(peer, VirtioFeature(0))
        far = peer.region(peer.gpa + RAM_SIZE, 0x1000, USER + RAM_SIZE, RAM_SIZE - 0x1000)
        peer.do(AddMemReg(far), [peer.ram])
        words = hold(peer, ring, holder)
        peer.do(RemMemReg(far))
        holder.answers.set()
        assert gather(ring, len(words)) == words
        assert holder.events[-2:] == ["stop 0", "start 0"]
    assert not holding.lines.having("", "ERROR")
