# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Every rule a driver can break ends in a VirtqueueError that names the numbers; the ring stays broken."""

import time
from collections.abc import Callable

import pytest

from tests.virtqueue.guest import BASE, DATA, INDIRECT, NEXT, SIZE, WRITE, Guest
from vhost.errors import VirtqueueError

END = BASE + SIZE
TABLE = DATA + 0x4000


def table(g: Guest, entries: int) -> None:
    g.desc(0, TABLE, 16 * entries, INDIRECT)
    for i in range(entries):
        g.desc(i, DATA + 16 * i, 16, NEXT if i + 1 < entries else 0, i + 1, table=TABLE)


def jump(g: Guest) -> None:
    g.publish(9)


def head(g: Guest) -> None:
    g.offer(8)


def follow(g: Guest) -> None:
    g.desc(0, DATA, 16, NEXT, 8)
    g.offer(0)


def loop(g: Guest) -> None:
    g.desc(0, DATA, 16, NEXT, 1)
    g.desc(1, DATA, 16, NEXT, 0)
    g.offer(0)


def self_loop(g: Guest) -> None:
    g.desc(3, DATA, 16, NEXT, 3)
    g.offer(3)


def loop_in_table(g: Guest) -> None:
    table(g, 2)
    g.desc(1, DATA, 16, NEXT, 0, table=TABLE)
    g.offer(0)


def long_table(g: Guest) -> None:
    table(g, 9)
    g.offer(0)


def long_mixed(g: Guest) -> None:
    for i in range(4):
        g.desc(i, DATA, 16, NEXT, i + 1)
    table(g, 6)
    g.desc(4, TABLE, 6 * 16, INDIRECT)
    g.desc(0, DATA, 16, NEXT, 1)
    g.offer(0)


def order(g: Guest) -> None:
    g.desc(0, DATA, 16, WRITE | NEXT, 1)
    g.desc(1, DATA, 16)
    g.offer(0)


def order_with_empty(g: Guest) -> None:
    g.desc(0, DATA, 0, WRITE | NEXT, 1)
    g.desc(1, DATA, 16)
    g.offer(0)


def nested(g: Guest) -> None:
    table(g, 2)
    g.desc(1, TABLE, 32, INDIRECT, table=TABLE)
    g.offer(0)


def indirect_next(g: Guest) -> None:
    table(g, 2)
    g.desc(0, TABLE, 32, INDIRECT | NEXT, 1)
    g.offer(0)


def table_empty(g: Guest) -> None:
    g.desc(0, TABLE, 0, INDIRECT)
    g.offer(0)


def table_odd(g: Guest) -> None:
    g.desc(0, TABLE, 24, INDIRECT)
    g.offer(0)


def table_outside(g: Guest) -> None:
    g.desc(0, END - 16, 32, INDIRECT)
    g.offer(0)


def next_in_table(g: Guest) -> None:
    table(g, 2)
    g.desc(0, DATA, 16, NEXT, 2, table=TABLE)
    g.offer(0)


def outside(g: Guest) -> None:
    g.desc(0, 0x1000, 16)
    g.offer(0)


def across_end(g: Guest) -> None:
    g.desc(0, END - 8, 16)
    g.offer(0)


def wraps(g: Guest) -> None:
    g.desc(0, 2**64 - 8, 16)
    g.offer(0)


CASES: list[tuple[Callable[[Guest], None], str]] = [
    (jump, r"avail index is 9, but the last entry taken was 0"),
    (head, r"names descriptor 8 of a ring of 8"),
    (follow, r"next is 8 in a table of 8"),
    (loop, r"chain at descriptor 0 loops"),
    (self_loop, r"chain at descriptor 3 loops"),
    (loop_in_table, r"chain at descriptor 0 loops"),
    (long_table, r"more than 8 descriptors"),
    (long_mixed, r"more than 8 descriptors"),
    (order, r"readable buffer behind a writable one, at index 1"),
    (order_with_empty, r"readable buffer behind a writable one, at index 1"),
    (nested, r"indirect table within an indirect one, at index 1"),
    (indirect_next, r"INDIRECT and NEXT set together, at index 0"),
    (table_empty, r"indirect table of 0 bytes"),
    (table_odd, r"indirect table of 24 bytes"),
    (table_outside, r"32 bytes at guest address 0x8fff0 are not wholly"),
    (next_in_table, r"next is 2 in a table of 2"),
    (outside, r"16 bytes at guest address 0x1000 are not wholly"),
    (across_end, r"16 bytes at guest address 0x8fff8 are not wholly"),
    (wraps, r"16 bytes at guest address 0xfffffffffffffff8 are not wholly"),
]


@pytest.mark.parametrize(("build", "words"), CASES, ids=[build.__name__ for build, _ in CASES])
def test_bad_chain_breaks_the_ring(build: Callable[[Guest], None], words: str) -> None:
    g = Guest(indirect=True)
    build(g)
    with pytest.raises(VirtqueueError, match=words):
        g.queue.pop()
    g.desc(0, DATA, 16)
    with pytest.raises(VirtqueueError, match=words):  # and it stays broken
        g.queue.pop()
    assert g.queue.popped == 0
    g.close()


@pytest.mark.parametrize(("build", "words"), CASES[1:], ids=[build.__name__ for build, _ in CASES[1:]])
def test_good_chains_before_a_bad_one_are_served(build: Callable[[Guest], None], words: str) -> None:
    g = Guest(indirect=True)
    g.desc(7, DATA, 32)
    g.offer(7)
    build(g)
    batch = g.queue.pop()
    assert [chain.head for chain in batch] == [7]
    batch.push()
    assert g.used() == [(7, 0)]
    with pytest.raises(VirtqueueError, match=words):
        g.queue.pop()
    g.close()


def test_indirect_without_the_feature() -> None:
    g = Guest()
    table(g, 2)
    g.offer(0)
    with pytest.raises(VirtqueueError, match="indirect at index 0, which was not negotiated"):
        g.queue.pop()
    g.close()


def test_a_device_may_allow_longer_chains() -> None:
    g = Guest(indirect=True, max_chain=9)
    table(g, 9)
    g.offer(0)
    (chain,) = g.queue.pop()
    assert chain.readable == 9 * 16
    g.close()


def test_chain_in_more_pieces_than_a_batch_holds() -> None:
    g = Guest(indirect=True, regions=64)
    # Eight buffers of all of memory: 8 * 64 pieces fit; twenty of them do not.
    g.queue.close()
    g.queue = g.start(indirect=True, max_chain=20)
    g.desc(0, TABLE, 16 * 20, INDIRECT)
    for i in range(20):
        g.desc(i, BASE, SIZE, NEXT if i < 19 else 0, i + 1, table=TABLE)
    g.offer(0)
    with pytest.raises(VirtqueueError, match="more than 1044 pieces"):
        g.queue.pop()
    g.close()


def test_descriptor_table_is_read_once_per_entry() -> None:
    # The chain a device sees is the one that was checked: what the driver changes later has no effect.
    g = Guest()
    g.put(DATA, b"checked bytes...")
    g.desc(0, DATA, 16)
    g.offer(0)
    (chain,) = g.queue.pop()
    g.desc(0, 0x1000, 4096, WRITE | NEXT, 5)
    assert (chain.readable, chain.writable) == (16, 0)
    assert chain.read() == b"checked bytes..."
    g.close()


def test_what_endless_chains_lack_is_soon_found() -> None:
    """Chains that share their descriptors, and these their table, would be looked at a billion times."""
    size = 1024
    g = Guest(size)
    queue = g.start(indirect=True, translation=g.memory)
    for i in range(size):
        g.desc(i, TABLE, 16 * size, INDIRECT | NEXT, (i + 1) % size)
        g.desc(i, DATA, 16, NEXT if i + 1 < size else 0, (i + 1) % size, table=TABLE)
    g.offer(*range(size))
    began = time.monotonic()
    assert queue.lacking() == ([], [])
    assert time.monotonic() - began < 1
    queue.close()
    g.close()
