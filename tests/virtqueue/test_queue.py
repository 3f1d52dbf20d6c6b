# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The device's side of a split ring: batches, chains, notifications, restarts."""

import os
import struct
from array import array
from pathlib import Path

import pytest

from tests.virtqueue.guest import AVAIL, BASE, DATA, INDIRECT, NEXT, SIZE, USED, WRITE, Guest
from vhost._core import ffi
from vhost.errors import DeviceError


def simple(g: Guest, i: int, data: bytes, room: int = 0) -> None:
    """Descriptor 2*i readable with data, 2*i+1 writable."""
    at = DATA + 0x1000 * i
    g.put(at, data)
    g.desc(2 * i, at, len(data), NEXT if room else 0, 2 * i + 1)
    if room:
        g.desc(2 * i + 1, at + 0x800, room, WRITE)


def test_request_and_answer() -> None:
    g = Guest()
    simple(g, 0, b"ping", 16)
    g.offer(0)
    (chain,) = g.queue.pop()
    assert (chain.head, chain.readable, chain.writable) == (0, 4, 16)
    assert chain.read() == b"ping"
    assert chain.read() == b""
    assert chain.write(b"po") == 2
    assert chain.write(b"ng!") == 3
    chain.push()
    assert g.used() == [(0, 5)]
    assert g.get(DATA + 0x800, 5) == b"pong!"
    assert not g.queue.pop()
    g.close()


def test_parts_are_flat_whatever_the_descriptors() -> None:
    g = Guest(16)
    words = [b"a", b"", b"bcd", b"efghijk"]
    for i, word in enumerate(words):
        g.put(DATA + 64 * i, word)
        g.desc(i, DATA + 64 * i, len(word), NEXT, i + 1)
    for i, room in enumerate((3, 1, 10)):
        g.desc(4 + i, DATA + 0x1000 + 64 * i, room, WRITE | (NEXT if i < 2 else 0), 5 + i)
    g.offer(0)
    (chain,) = g.queue.pop()
    assert (chain.readable, chain.writable) == (11, 14)
    assert chain.read(2) == b"ab"
    buffer = bytearray(4)
    assert chain.readinto(buffer) == 4
    assert buffer == b"cdef"
    assert chain.read(100) == b"ghijk"
    assert [bytes(view) for view in chain.readable_iov(3, 5)] == [b"d", b"efgh"]
    assert [len(view) for view in chain.writable_iov(1)] == [2, 1, 10]
    assert [len(view) for view in chain.writable_iov(3, 0)] == []
    assert chain.write_at(13, b"Zzz") == 1  # one byte of room left
    assert chain.written == 14
    assert chain.write(b"0123456") == 7
    chain.push()
    assert g.used() == [(0, 14)]
    assert g.get(DATA + 0x1000, 3) + g.get(DATA + 0x1040, 1) + g.get(DATA + 0x1080, 3) == b"0123456"
    assert g.get(DATA + 0x1080 + 9, 1) == b"Z"
    g.close()


def test_buffer_across_regions() -> None:
    g = Guest(regions=8)
    border = BASE + SIZE // 8 * 4
    g.put(border - 4, b"leftright")
    g.desc(0, border - 4, 9)
    g.offer(0)
    (chain,) = g.queue.pop()
    assert chain.read() == b"leftright"
    assert [bytes(view) for view in chain.readable_iov()] == [b"left", b"right"]
    g.close()


def test_iovecs_do_not_copy() -> None:
    g = Guest()
    simple(g, 0, b"x" * 100, 200)
    g.offer(0)
    (chain,) = g.queue.pop()
    fd = os.memfd_create("file")
    assert os.pwritev(fd, chain.readable_iov(10), 0) == 90
    assert os.preadv(fd, chain.writable_iov(0, 90), 0) == 90
    chain.wrote(90)
    chain.push()
    assert g.get(DATA + 0x800, 90) == b"x" * 90
    os.close(fd)
    g.close()


def test_views_end_with_the_chain() -> None:
    g = Guest()
    simple(g, 0, b"mine", 4)
    simple(g, 1, b"more", 4)
    g.offer(0, 2)
    first, second = g.queue.pop()
    (view,) = first.writable_iov()
    with pytest.raises(TypeError):
        first.readable_iov()[0][0] = 1
    first.push()
    with pytest.raises(ValueError, match="released"):
        view[0] = 1
    for use in (first.read, first.push, first.writable_iov, lambda: first.write(b"x")):
        with pytest.raises(DeviceError, match="complete"):
            use()
    held = ffi.from_buffer(second.writable_iov()[0])
    with pytest.raises(DeviceError, match="still holds a view"):
        second.push()
    ffi.release(held)
    second.push()
    g.close()


def test_views_end_with_the_batch_whatever_chain_object_gave_them() -> None:
    g = Guest()
    simple(g, 0, b"mine", 4)
    simple(g, 1, b"more", 4)
    g.offer(0, 2)
    batch = g.queue.pop()
    views = [view for chain in batch for view in (*chain.readable_iov(), *chain.writable_iov())]
    batch[1].done()
    held = ffi.from_buffer(views[0])
    with pytest.raises(DeviceError, match="still holds a view"):
        batch.push()
    ffi.release(held)
    batch.push()
    for view in views:
        with pytest.raises(ValueError, match="released"):
            bytes(view)
    g.close()


def test_slice_that_outlives_everything_keeps_its_memory_mapped() -> None:
    g = Guest()
    simple(g, 0, b"kept", 4)
    g.offer(0)
    (chain,) = g.queue.pop()
    held = chain.readable_iov()[0][1:3]
    chain.push()
    g.close()
    assert bytes(held) == b"ep"


def test_more_written_than_there_is_room() -> None:
    g = Guest()
    simple(g, 0, b"x", 4)
    g.offer(0)
    (chain,) = g.queue.pop()
    with pytest.raises(DeviceError, match="5 bytes said to be written to a chain with room for 4"):
        chain.wrote(5)
    g.close()


def test_batch_scatter_completes_what_it_fills() -> None:
    g = Guest()
    for i, room in enumerate((10, 20, 30)):
        g.desc(i, DATA + 64 * i, room, WRITE)
    g.desc(3, DATA + 0x1000, 8)
    g.offer(0, 3, 1, 2)
    batch = g.queue.pop()
    assert (batch.writable, batch.readable) == (60, 8)
    assert batch.scatter(bytes(range(25))) == 25
    assert [chain.head for chain in batch.left()] == [2]
    batch.push()
    assert g.used() == [(0, 10), (3, 0), (1, 15), (2, 0)]
    assert g.get(DATA, 10) + g.get(DATA + 64, 15) == bytes(range(25))
    g.close()


def test_batch_as_arrays() -> None:
    g = Guest()
    for i, text in enumerate((b"\x01abc", b"\x02", b"\x03defghi")):
        g.put(DATA + 64 * i, text)
        g.desc(2 * i, DATA + 64 * i, len(text), NEXT, 2 * i + 1)
        g.desc(2 * i + 1, DATA + 0x1000 + 64 * i, 4 * i, WRITE)
    g.offer(0, 2, 4)
    batch = g.queue.pop()
    readable, writable = batch.sizes()
    assert (list(readable), list(writable)) == ([4, 1, 7], [0, 4, 8])
    assert batch.gather(3) == b"\x01ab\x02\0\0\x03de"
    with pytest.raises(DeviceError, match="2 sizes of 8 bytes for 3 chains"):
        batch.scatter(b"", array("Q", (1, 2)))
    answers = array("H", (1, 2, 3, 4))
    assert batch.scatter(answers, array("Q", (0, 2, 6))) == 8
    batch.push()
    assert g.used() == [(0, 0), (2, 2), (4, 6)]
    assert g.get(DATA + 0x1040, 4) == answers.tobytes()[:2] + bytes(2)
    assert g.get(DATA + 0x1080, 8) == answers.tobytes()[2:] + bytes(2)
    g.close()


def test_sizes_beyond_the_room_of_a_chain() -> None:
    g = Guest()
    g.desc(0, DATA, 4, WRITE)
    g.desc(1, DATA + 64, 4, WRITE)
    g.offer(0, 1)
    batch = g.queue.pop()
    assert batch.scatter(bytes(range(1, 20)), array("Q", (1 << 63, 3))) == 7
    batch.push()
    assert g.used() == [(0, 4), (1, 3)]
    assert g.get(DATA, 4) + g.get(DATA + 64, 4) == bytes((1, 2, 3, 4, 5, 6, 7, 0))
    g.close()


def test_batch_limit_and_order() -> None:
    g = Guest(128)
    for i in range(128):
        g.desc(i, DATA, 1)
    g.offer(*range(128))
    assert [len(g.queue.pop(n)) for n in (1, 10, 64, 1000)] == [1, 10, 64, 53]
    assert g.queue.base == 128
    g.close()


def test_chains_may_be_pushed_later_and_in_any_order() -> None:
    g = Guest()
    for i in range(6):
        g.desc(i, DATA, 1)
    g.offer(0, 1, 2)
    first = list(g.queue.pop())
    g.offer(3, 4, 5)
    second = list(g.queue.pop())
    for chain in (second[2], first[1], first[0], second[0], first[2], second[1]):
        chain.push()
    assert [head for head, _ in g.used()] == [5, 1, 0, 3, 2, 4]
    g.close()


def test_pausing_queue_pops_nothing() -> None:
    g = Guest()
    g.desc(0, DATA, 1)
    g.offer(0)
    g.queue.pausing = True
    assert not g.queue.pop()
    g.queue.pausing = False
    assert len(g.queue.pop()) == 1
    g.close()


def call_fd(g: Guest, **options: object) -> int:
    g.queue.close()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    g.queue = g.start(call_fd=fd, **options)
    return fd


def calls(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_one_notification_for_a_batch() -> None:
    g = Guest()
    fd = call_fd(g)
    for i in range(8):
        g.desc(i, DATA, 1)
    g.offer(*range(8))
    g.queue.pop().push()
    assert calls(fd) == 1
    assert len(g.used()) == 8
    os.close(fd)
    g.close()


def test_no_interrupt_flag_is_honoured() -> None:
    g = Guest()
    fd = call_fd(g)
    g.desc(0, DATA, 1)
    g.put(AVAIL, b"\1\0")
    g.offer(0)
    g.queue.pop().push()
    assert calls(fd) == 0
    g.put(AVAIL, b"\0\0")
    g.offer(0)
    g.queue.pop().push()
    assert calls(fd) == 1
    os.close(fd)
    g.close()


def test_event_idx_decides_on_calls() -> None:
    g = Guest()
    fd = call_fd(g, event_idx=True)
    for i in range(8):
        g.desc(i, DATA, 1)
    used_event = AVAIL + 4 + 2 * 8

    def serve(n: int) -> int:
        g.offer(*range(n))
        g.queue.pop().push()
        return calls(fd)

    assert serve(1) == 1  # the first one always
    g.put(used_event, struct.pack("<H", 3))
    assert serve(2) == 0  # used index 3: entry 3 is not used yet
    assert serve(1) == 1
    assert serve(4) == 0
    os.close(fd)
    g.close()


def test_kick_suppression() -> None:
    g = Guest()
    g.queue.kicks_off()
    assert g.u16(USED) == 1
    assert g.queue.kicks_on() is False
    assert g.u16(USED) == 0
    g.desc(0, DATA, 1)
    g.offer(0)
    assert g.queue.kicks_on() is True  # it came before we asked for kicks
    g.close()


def test_kick_suppression_with_event_idx() -> None:
    g = Guest(event_idx=True)
    g.desc(0, DATA, 1)
    g.offer(0, 0, 0)
    g.queue.pop()
    assert g.queue.kicks_on() is False
    assert g.u16(USED + 4 + 8 * 8) == 3
    assert g.u16(USED) == 0
    g.close()


def test_closed_queue_is_empty_and_takes_late_chains() -> None:
    g = Guest()
    g.desc(0, DATA, 1)
    g.offer(0)
    (chain,) = g.queue.pop()
    g.offer(0)
    queue = g.queue
    queue.close()
    assert not queue.pop()
    assert not queue.available()
    assert not queue.kicks_on()
    queue.kicks_off()
    chain.push()  # a device that is late
    assert g.used() == []
    g.close()


def test_a_batch_that_outlives_its_queue_keeps_its_memory() -> None:
    g = Guest()
    simple(g, 0, b"", 4)
    simple(g, 1, b"", 4)
    g.offer(0, 2)
    first, second = g.queue.pop()
    g.close()
    first.push()
    assert second.write(b"late") == 4, "nobody dies"
    second.push()
    assert "memfd:guest" not in Path("/proc/self/maps").read_text()


def test_full_call_counter_does_not_block() -> None:
    g = Guest()
    fd = call_fd(g)
    os.eventfd_write(fd, 2**64 - 2)
    g.desc(0, DATA, 1)
    g.offer(0)
    g.queue.pop().push()
    assert g.used() == [(0, 0)]
    os.close(fd)
    g.close()


def test_restart_goes_on_where_the_ring_was() -> None:
    g = Guest()
    for i in range(8):
        g.desc(i, DATA, 1)
    for _ in range(3):
        g.offer(0, 1, 2)
        g.queue.pop().push()
    base = g.queue.base
    assert base == 9
    g.queue.close()
    g.queue = g.start(base=base)
    g.offer(5)
    assert [chain.head for chain in g.queue.pop()] == [5]
    g.close()


def test_indexes_wrap_at_65536() -> None:
    g = Guest(4)
    g.queue.close()
    g.avail_idx = 65530
    g.publish(65530)
    g.put(USED + 2, struct.pack("<H", 65530))
    g.queue = g.start(base=65530)
    g.desc(0, DATA, 1)
    for _ in range(5):
        g.offer(0, 0, 0)
        batch = g.queue.pop()
        assert len(batch) == 3
        batch.push()
    assert g.u16(USED + 2) == (65530 + 15) & 0xFFFF
    assert g.queue.base == 9
    g.close()


def test_memory_table_changes_between_batches() -> None:
    from vhost.mem import RegionSpec

    g = Guest()
    g.desc(0, 0x900000, 4)
    fd = os.memfd_create("more")
    os.pwrite(fd, b"more" + bytes(4092), 0)
    g.memory.add(RegionSpec(0x900000, 4096, 0x900000, 0), fd)
    g.offer(0)
    (chain,) = g.queue.pop()
    g.memory.remove(RegionSpec(0x900000, 4096, 0x900000, 0))
    assert chain.read() == b"more"  # in flight: still mapped
    chain.push()
    g.close()


def test_unaligned_indirect_table() -> None:
    g = Guest(indirect=True)
    table = DATA + 0x1003
    g.put(DATA, b"hello")
    g.desc(0, table, 32, INDIRECT)
    g.desc(0, DATA, 5, NEXT, 1, table=table)
    g.desc(1, DATA + 64, 5, WRITE, table=table)
    g.offer(0)
    (chain,) = g.queue.pop()
    assert (chain.read(), chain.writable) == (b"hello", 5)
    g.close()
