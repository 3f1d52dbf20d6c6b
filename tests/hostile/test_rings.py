# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Drivers that break the rules of their ring: it breaks, the front-end is told, nothing else happens."""

import os
import random
import struct
import threading
from collections.abc import Callable

import pytest

from tests.backend.peer import DATA, GPA, RAM_SIZE, USER, DriverRing, readable
from tests.backend.serving import Serving
from tests.hostile.raw import survived
from vhost.protocol import (
    AddMemReg,
    Message,
    RemMemReg,
    ResetOwner,
    SetMemTable,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringErr,
    SetVringKick,
    SetVringNum,
    VirtioFeature,
)

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 16
BUFFER = GPA + DATA

Descriptor = tuple[int, int, int, int]  # address, length, flags, next


def lay(ring: DriverRing, place: int, *table: Descriptor) -> None:
    """Write descriptors at an offset of guest memory."""
    for index, descriptor in enumerate(table):
        at = place + 16 * index
        ring.peer.view[at : at + 16] = struct.pack("<QIHH", *descriptor)


def offer(ring: DriverRing, *heads: int, index: int | None = None) -> None:
    """Fill the avail ring."""
    idx = len(heads) if index is None else index
    ring.memory(0x1000, 4 + 2 * len(heads))[:] = struct.pack(f"<HH{len(heads)}H", 0, idx, *heads)


def head_out_of_range(ring: DriverRing) -> None:
    offer(ring, SIZE)


def next_out_of_range(ring: DriverRing) -> None:
    lay(ring, 0, (BUFFER, 4, NEXT, 0xFFFF))
    offer(ring, 0)


def loop(ring: DriverRing) -> None:
    lay(ring, 0, (BUFFER, 4, NEXT, 1), (BUFFER, 4, NEXT, 0))
    offer(ring, 0)


def loop_to_itself(ring: DriverRing) -> None:
    lay(ring, 0, (BUFFER, 4, NEXT, 0))
    offer(ring, 0)


def longer_than_the_ring(ring: DriverRing) -> None:
    table = [(BUFFER, 1, NEXT, n + 1) for n in range(SIZE)] + [(BUFFER, 1, 0, 0)]
    lay(ring, DATA, *table)
    lay(ring, 0, (BUFFER, 16 * len(table), INDIRECT, 0))
    offer(ring, 0)


def outside(ring: DriverRing) -> None:
    lay(ring, 0, (0x1000, 4, 0, 0))
    offer(ring, 0)


def across_the_end(ring: DriverRing) -> None:
    lay(ring, 0, (GPA + RAM_SIZE - 4, 8, WRITE, 0))
    offer(ring, 0)


def past_all_addresses(ring: DriverRing) -> None:
    lay(ring, 0, (2**64 - 4, 8, 0, 0))
    offer(ring, 0)


def writable_first(ring: DriverRing) -> None:
    lay(ring, 0, (BUFFER, 4, WRITE | NEXT, 1), (BUFFER, 4, 0, 0))
    offer(ring, 0)


def nested_indirect(ring: DriverRing) -> None:
    lay(ring, DATA, (BUFFER, 16, INDIRECT, 0))
    lay(ring, 0, (BUFFER, 16, INDIRECT, 0))
    offer(ring, 0)


def indirect_and_next(ring: DriverRing) -> None:
    lay(ring, DATA, (BUFFER, 16, 0, 0))
    lay(ring, 0, (BUFFER, 16, INDIRECT | NEXT, 1), (BUFFER, 4, 0, 0))
    offer(ring, 0)


def indirect_of_odd_length(ring: DriverRing) -> None:
    lay(ring, 0, (BUFFER, 17, INDIRECT, 0))
    offer(ring, 0)


def indirect_of_no_length(ring: DriverRing) -> None:
    lay(ring, 0, (BUFFER, 0, INDIRECT, 0))
    offer(ring, 0)


def indirect_outside(ring: DriverRing) -> None:
    lay(ring, 0, (GPA + RAM_SIZE, 16, INDIRECT, 0))
    offer(ring, 0)


def avail_jump(ring: DriverRing) -> None:
    offer(ring, index=SIZE + 1)


def avail_backwards(ring: DriverRing) -> None:
    offer(ring, index=0xFFFF)


MISCHIEF: list[tuple[Callable[[DriverRing], None], str]] = [
    (head_out_of_range, "names descriptor 16 of a ring of 16"),
    (next_out_of_range, "next is 65535 in a table of 16"),
    (loop, "loops|more than 16 descriptors"),
    (loop_to_itself, "loops|more than 16 descriptors"),
    (longer_than_the_ring, "more than 16 descriptors|272"),
    (outside, "4 bytes at guest address 0x1000"),
    (across_the_end, f"8 bytes at guest address {GPA + RAM_SIZE - 4:#x}"),
    (past_all_addresses, "8 bytes at guest address 0xfffffffffffffffc"),
    (writable_first, "readable buffer behind a writable one"),
    (nested_indirect, "indirect table (inside|within)"),
    (indirect_and_next, "INDIRECT and NEXT"),
    (indirect_of_odd_length, "indirect table of 17 bytes"),
    (indirect_of_no_length, "indirect table of 0 bytes"),
    (indirect_outside, "16 bytes at guest address"),
    (avail_jump, "avail index is 17"),
    (avail_backwards, "avail index is 65535"),
]


@pytest.mark.parametrize(("mischief", "line"), MISCHIEF, ids=[entry[0].__name__ for entry in MISCHIEF])
def test_bad_ring_breaks_alone(server: Serving, mischief: Callable[[DriverRing], None], line: str) -> None:
    with survived(server) as peer:
        ring, other = peer.ready(size=SIZE), peer.ring(1)
        peer.start(other)
        mischief(ring)
        ring.kick_it()
        assert readable(ring.err), "the front-end is not told"
        server.lines.wait(f"ring 0 is broken until it is set up anew: .*({line})", level="ERROR")
        assert not ring.driver.poll()
        ring.kick_it()  # nobody listens
        assert other.request(b"fine") == b"enif"
        assert peer.base() == 0
        assert len(server.lines.having("", "ERROR")) == 1, "one line says it all"


def test_truncated_memory_breaks_the_ring(server: Serving) -> None:
    with survived(server) as peer:
        ring = peer.ready(size=SIZE)
        lay(ring, 0, (BUFFER + 0x70000, 16, NEXT, 1), (BUFFER, 16, WRITE, 0))
        offer(ring, 0)
        os.ftruncate(peer.ram, DATA + 0x20000)
        ring.kick_it()
        assert readable(ring.err)
        server.lines.wait("ring 0 is broken.*was truncated", level="ERROR")
        assert peer.base() <= 1


def test_good_chains_before_a_bad_one_are_served(server: Serving) -> None:
    with survived(server) as peer:
        ring = peer.ready(size=SIZE)
        peer.view[DATA : DATA + 4] = b"abcd"
        lay(ring, 0, (BUFFER, 4, NEXT, 1), (BUFFER + 16, 4, WRITE, 0), (0, 4, 0, 0))
        offer(ring, 0, 2)
        ring.kick_it()
        assert readable(ring.err)
        assert peer.view[DATA + 16 : DATA + 20] == b"dcba"
        assert ring.memory(0x2000, 4)[2:4] == b"\1\0"
        assert peer.base() == 1


def test_broken_ring_can_be_set_up_anew(server: Serving) -> None:
    with survived(server) as peer:
        ring = peer.ready(size=SIZE)
        avail_jump(ring)
        ring.kick_it()
        assert readable(ring.err)
        fresh = peer.ring(0)
        fresh.memory(0, 0x3000)[:] = bytes(0x3000)
        peer.start(fresh)  # no GET_VRING_BASE in between
        assert fresh.request(b"anew") == b"wena"


def test_indirect_must_be_negotiated(server: Serving) -> None:
    with survived(server) as peer:
        peer.negotiate(VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES)
        peer.share()
        ring = peer.ring(size=SIZE)
        peer.start(ring)
        lay(ring, 0, (BUFFER, 16, INDIRECT, 0))
        offer(ring, 0)
        ring.kick_it()
        assert readable(ring.err)
        server.lines.wait("indirect at index 0, which was not negotiated", level="ERROR")


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def writing_end() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    ("make", "line"),
    [(closed_pipe, "the peer has closed it"), (writing_end, "Bad file descriptor")],
    ids=["closed", "unreadable"],
)
def test_dead_kick_descriptor_breaks_the_ring(server: Serving, make: Callable[[], int], line: str) -> None:
    with survived(server) as peer:
        peer.negotiate()
        peer.share()
        ring = peer.ring()
        peer.start(ring)
        fd = make()
        peer.do(SetVringKick(0), [fd])
        os.close(fd)
        assert readable(ring.err)
        server.lines.wait(f"ring 0 is broken.*its kick descriptor has failed: {line}", level="ERROR")
        peer.do(SetVringKick(0), [ring.kick])
        assert ring.request(b"ok") == b"ko"


def test_dead_call_and_err_descriptors_hurt_nobody(server: Serving) -> None:
    with survived(server) as peer:
        ring = peer.ready()
        reader, writer = os.pipe()
        os.close(reader)
        peer.do(SetVringCall(0), [writer])
        peer.do(SetVringErr(0), [writer])
        os.close(writer)
        ring.add(b"quiet", 64)
        ring.kick_it()
        while not ring.driver.poll():
            assert peer.base(1) == 0
        avail_backwards(ring)
        ring.kick_it()
        server.lines.wait("ring 0 is broken", level="ERROR")


def test_memory_that_goes_under_a_ring_that_is_kicked_all_the_time(server: Serving) -> None:
    """It comes back in parts, or not, and the ring is stopped, disabled and set up anew in between."""
    with survived(server) as peer:
        ring = peer.ready()
        dice, stop = random.Random(1), threading.Event()

        def kick() -> None:
            while not stop.is_set():
                ring.kick_it()

        kicker = threading.Thread(target=kick)
        kicker.start()
        whole = peer.region()
        parts = [peer.region(GPA + at, n, USER + at, at) for at, n in ((0, 0x2000), (0x2000, 0xFE000))]
        there = [whole]
        meddling: tuple[Message, ...] = (
            SetVringEnable(0, 0),
            SetVringEnable(0, 1),
            SetVringNum(0, 8),
            SetVringNum(0, 16),
            SetVringBase(0, 0),
            ResetOwner(),
        )
        for _ in range(150):
            while there:
                peer.do(RemMemReg(there.pop()))
            peer.do(dice.choice(meddling))
            for region in [whole] if dice.random() < 0.5 else parts[: dice.randint(0, 2)]:
                peer.do(AddMemReg(region), [peer.ram])
                there.append(region)
            peer.ask(SetVringKick(0), [ring.kick])
        peer.do(SetMemTable((whole,)), [peer.ram])
        stop.set()
        kicker.join()
        peer.base()
        fresh = peer.ring(0)
        fresh.memory(0, 0x3000)[:] = bytes(0x3000)
        peer.start(fresh)
        assert fresh.request(b"on") == b"no"
        assert not server.lines.having("", "ERROR")


def test_other_memory_comes_where_a_ring_was(server: Serving) -> None:
    with survived(server) as peer:
        ring = peer.ready()
        assert [ring.request(b"ab") for _ in range(5)] == [b"ba"] * 5
        peer.do(RemMemReg(peer.region()))
        other = peer.memory()
        peer.do(AddMemReg(peer.region()), [other])
        os.close(other)
        assert readable(ring.err)
        server.lines.wait("ring 0 is broken.*avail index is 0, but the last .* taken was 5", level="ERROR")
        assert peer.base() == 5


def test_peer_with_many_rings_gone(server: Serving) -> None:
    with survived(server) as peer:
        for index in range(2):
            ring = peer.ring(index) if index else peer.ready()
            if index:
                peer.start(ring)
            ring.add(b"x", 1)
            ring.kick_it()
        peer.sock.close()
