# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Requests through a device of ours, by all kinds of ring."""

import os
import socket
from collections.abc import Callable

import pytest

import vhost
from tests.frontend.served import Reverse
from vhost.errors import RefusedError, VirtqueueError
from vhost.protocol import ProtocolFeature

KINDS = [
    pytest.param(event_idx, indirect, id=f"{'event_idx' if event_idx else 'flags'}-{kind}")
    for event_idx in (False, True)
    for indirect, kind in ((False, "direct"), (True, "indirect"))
]


@pytest.mark.parametrize(("event_idx", "indirect"), KINDS)
def test_one_after_the_other(backend: socket.socket, event_idx: bool, indirect: bool) -> None:
    with vhost.connect(backend, event_idx=event_idx, indirect=indirect, queue_size=16) as device:
        for n in range(100):
            data = bytes(range(n, n + 7))
            assert device.request(data, 7) == data[::-1]
        assert device.request(b"long answer", 4) == b"rews"
        assert device.request(b"short answer", 4096) == b"rewsna trohs"


@pytest.mark.parametrize(("event_idx", "indirect"), KINDS)
def test_many_in_flight(backend: socket.socket, event_idx: bool, indirect: bool) -> None:
    with vhost.connect(backend, event_idx=event_idx, indirect=indirect, queue_size=64) as device:
        queue = device.queue(0)
        wanted: dict[int, bytes] = {}
        sent = 0
        while sent < 1000 or wanted:
            while sent < 1000:
                data = sent.to_bytes(4, "little") * 3
                try:
                    token = queue.submit([data[:5], data[5:]], [3, 9], publish=bool(sent % 3))
                except BlockingIOError:
                    queue.publish()
                    break
                wanted[token] = data[::-1]
                sent += 1
            else:
                queue.publish()
            done = queue.wait()
            assert done.data == wanted.pop(done.token)
            for done in queue.completed():
                assert done.data == wanted.pop(done.token)
        assert queue.in_flight == 0


def test_pieces_become_descriptors(backend: socket.socket, device: Reverse) -> None:
    with vhost.connect(backend, indirect=False, queue_size=8) as frontend:
        assert frontend.request([b"ab", b"", b"cd"], [1, 0, 2, 1]) == b"dcba"
        assert frontend.request(memoryview(b"xyz"), 8) == b"zyx"
        assert frontend.request(bytearray(b"1"), 0) == b""
        queue = frontend.queue(0)
        with pytest.raises(ValueError, match="9 pieces; this ring takes up to 8"):
            queue.submit([b"x"] * 9)
        queue.submit([b"x"] * 8)  # takes all of the ring
    assert device.lengths[:3] == [(4, 4), (3, 8), (1, 0)]


def test_full(backend: socket.socket) -> None:
    with vhost.connect(backend, queue_size=2) as frontend:
        queue = frontend.queue(0)
        tokens = [queue.submit(bytes([n]), 1, publish=False) for n in range(2)]
        with pytest.raises(BlockingIOError, match="queue 0 is full with 2 requests in flight"):
            queue.submit(b"x", 1)
        queue.publish()
        queue.make_room()
        tokens.append(queue.submit(b"x", 1))
        assert [queue.wait(token).data for token in tokens] == [b"\0", b"\1", b"x"]


def test_nothing_to_say(backend: socket.socket) -> None:
    with vhost.connect(backend) as frontend, pytest.raises(ValueError, match="at least one byte"):
        frontend.request(b"", [0])


def test_a_ring_of_one_entry(backend: socket.socket) -> None:
    with vhost.connect(backend, queue_size=1) as frontend:
        assert [frontend.request(b"abc") for _ in range(3)] == [b""] * 3
        with pytest.raises(ValueError, match="2 pieces"):
            frontend.request(b"abc", 3)


def test_room_of_full_memory(backend: socket.socket) -> None:
    with vhost.connect(backend, ram_size=1 << 16) as frontend:
        with pytest.raises(MemoryError, match="ram_size"):
            frontend.request(bytes(1 << 16))
        free = frontend.ram.available
        assert frontend.request(b"abc", 3) == b"cba"
        assert frontend.ram.available == free


def test_two_queues(backend: socket.socket) -> None:
    with vhost.connect(backend, queues=2) as frontend:
        assert frontend.num_queues == 2
        one = frontend.queue(1).submit(b"one", 3)
        assert frontend.request(b"zero", 4) == b"orez"
        assert frontend.queue(1).wait(one).data == b"eno"
        with pytest.raises(IndexError, match="queues=3"):
            frontend.queue(2)


def test_waiting_for_one_keeps_the_others(backend: socket.socket) -> None:
    with vhost.connect(backend) as frontend:
        queue = frontend.queue(0)
        tokens = [queue.submit(bytes([n]), 1) for n in range(10)]
        assert queue.wait(tokens[9]).data == b"\x09"
        assert [queue.wait(token).data for token in tokens[:9]] == [bytes([n]) for n in range(9)]
        with pytest.raises(LookupError, match=f"request {tokens[0]}"):
            queue.wait(tokens[0])
        with pytest.raises(LookupError, match="queue 0 has no request"):
            queue.wait()


def test_all_that_is_in_flight_can_be_waited_for(backend: socket.socket) -> None:
    """Whoever reaped a completion: until it is taken, it counts, and the wait for it returns it."""
    with vhost.connect(backend) as frontend:
        queue = frontend.queue(0)
        assert not queue.make_room()
        tokens = [queue.submit(bytes([n]), 1) for n in range(3)]
        while queue.make_room():
            pass
        assert queue.in_flight == 3
        taken = []
        while queue.in_flight:
            taken.append(queue.wait().token)
        assert taken == tokens
        with pytest.raises(LookupError, match="queue 0 has no request"):
            queue.wait()


def test_who_waits_has_published(backend: socket.socket) -> None:
    with vhost.connect(backend, queue_size=2) as frontend:
        queue = frontend.queue(0)
        for _ in range(2):
            queue.submit(b"abc", 3, publish=False)
        while queue.in_flight:
            assert queue.wait().data == b"cba"
        queue.submit(b"abc", 3, publish=False)
        assert queue.make_room()
        assert [done.data for done in queue.completed()] == [b"cba"]


def test_stop_and_go_on(backend: socket.socket) -> None:
    with vhost.connect(backend, queue_size=4) as frontend:
        for n in range(9):
            frontend.request(bytes([n]), 1)
        assert frontend.stop(0) == 9
        queue = frontend.queue(0)
        assert not queue.running
        token = queue.submit(b"later", 5)
        with pytest.raises(VirtqueueError, match="stopped with 1 requests in flight"):
            queue.wait(token)
        frontend.start(0)
        assert queue.wait(token).data == b"retal"
        with pytest.raises(ValueError, match="running"):
            frontend.start(0)
        assert frontend.stop(0) == 10


def test_what_was_done_before_the_stop_is_there_after(backend: socket.socket) -> None:
    with vhost.connect(backend) as frontend:
        queue = frontend.queue(0)
        token = queue.submit(b"abc", 3)
        assert frontend.request(b"x", 1) == b"x"
        frontend.stop(0)
        assert queue.wait(token).data == b"cba"


def test_a_broken_ring_starts_over(backend: socket.socket) -> None:
    with vhost.connect(backend, queues=2) as frontend:
        for _ in range(3):
            frontend.request(b"fine", 4)
        lost = frontend.queue(0).submit(b"break", 1)
        with pytest.raises(VirtqueueError, match="queue 0: the backend reports an error"):
            frontend.queue(0).wait(lost)
        with pytest.raises(VirtqueueError, match="has to be stopped and started"):
            frontend.request(b"more", 4)
        assert frontend.request(b"other", 5, queue=1) == b"rehto"
        free = frontend.ram.available
        frontend.stop(0)
        frontend.start(0)
        assert frontend.ram.available > free  # what was lost with the ring
        assert frontend.request(b"again", 5) == b"niaga"
        with pytest.raises(LookupError):
            frontend.queue(0).wait(lost)


def test_reset(backend: socket.socket) -> None:
    with vhost.connect(backend, queues=2) as frontend:
        assert frontend.request(b"abc", 3) == b"cba"
        frontend.reset()
        assert not frontend.queue(0).running
        with pytest.raises(VirtqueueError, match="queue 1: the device was reset"):
            frontend.request(b"abc", 3, queue=1)
        for index in range(2):
            frontend.start(index)
            assert frontend.request(b"abc", 3, queue=index) == b"cba"
        assert frontend.stop(0) == 1


def test_configuration(backend: socket.socket) -> None:
    with vhost.connect(backend) as frontend:
        frontend.set_config(4, b"abcd")
        assert frontend.config(3, 6) == b"\0abcd\0"
        with pytest.raises(RefusedError, match="SET_CONFIG"):
            frontend.set_config(14, b"abcd")


@pytest.mark.parametrize("protocol", [0, ProtocolFeature.MQ, ProtocolFeature.REPLY_ACK])
def test_with_little_in_common(backend: socket.socket, protocol: int) -> None:
    with vhost.connect(backend, protocol_features=protocol) as frontend:
        assert frontend.protocol_features == protocol
        assert frontend.request(b"abc", 3) == b"cba"


def test_memory_in_a_slot(backend: socket.socket) -> None:
    with vhost.connect(backend, slots=True) as frontend:
        assert frontend.request(b"abc", 3) == b"cba"


@pytest.mark.parametrize("regions", [3, 20])
def test_memory_in_regions(backend: socket.socket, regions: int) -> None:
    with vhost.connect(backend, regions=regions, ram_size=regions << 18) as frontend:
        # The rings have filled some of the first region; this does not fit there.
        big = os.urandom(120_000)
        assert frontend.request(big, len(big)) == big[::-1]


def test_all_that_is_left_after_close(backend: socket.socket, mappings: Callable[[], list[str]]) -> None:
    before = len(mappings())
    with vhost.connect(backend) as frontend:
        buffer = frontend.ram.alloc(100)
        frontend.queue(0).submit(b"abc", 3)
        kick = [line for line in mappings() if "vhost-guest-ram" in line]
        assert kick
    with pytest.raises(ValueError, match="released"):
        buffer.view[0]
    assert len(mappings()) <= before + 1  # the backend's own mapping lives until it has seen the end
