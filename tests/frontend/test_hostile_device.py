# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices that break their side of the ring, or go away: found out, and found out soon."""

import threading
import time
from collections.abc import Callable

import pytest

import vhost
from tests.frontend.fake import Fake
from vhost.errors import RemoteProtocolError, VirtqueueError
from vhost.protocol import SetVringCall, SetVringErr

pytestmark = pytest.mark.usefixtures("no_leaks")


def head_of(fake: Fake, nth: int = 0) -> int:
    """The head the driver has put into the avail ring."""
    return fake.get("<H", fake.address[0].available + 4 + 2 * nth)[0]


def test_completed_by_hand() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        assert fake.kicked() == 1  # a start comes with a kick, whatever the device saw before
        queue = device.queue(0)
        token = queue.submit(b"abc", 8)
        assert fake.kicked() == 1
        fake.use(head_of(fake), 2)
        done = queue.wait(token)
        # What the device did not write looks like nothing that a device would write by accident.
        assert (done.data, done.buffer) == (b"\xff\xff", b"\xff" * 8)


def test_more_written_than_there_is_room() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        token = device.queue(0).submit(b"abc", 8)
        fake.use(head_of(fake), 9)
        with pytest.raises(VirtqueueError, match="wrote 9 bytes in a room of 8"):
            device.queue(0).wait(token)


@pytest.mark.parametrize("head", [5, 128, 0xFFFF_FFFF])
def test_returned_what_was_not_given(head: int) -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        token = device.queue(0).submit(b"abc", 8)
        fake.use(head, 0)
        with pytest.raises(VirtqueueError, match="queue 0"):
            device.queue(0).wait(token)
        with pytest.raises(VirtqueueError, match="stopped and started"):
            device.queue(0).submit(b"abc")


def test_returned_twice() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        first = device.queue(0).submit(b"abc", 8)
        second = device.queue(0).submit(b"def", 8)
        head = head_of(fake)
        fake.use(head, 0)
        assert device.queue(0).wait(first).written == 0
        fake.use(head, 0)
        with pytest.raises(VirtqueueError):
            device.queue(0).wait(second)


def test_an_error_reported_while_waiting() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        fake.signal(SetVringErr)
        with pytest.raises(VirtqueueError, match="the backend reports an error"):
            device.request(b"abc", 8)


def test_an_error_from_before_the_start_is_over() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        fake.signal(SetVringErr)
        device.stop(0)
        device.start(0)
        with pytest.raises(TimeoutError):
            device.request(b"abc", 8, timeout=0.05)


def test_what_came_back_counts_more_than_the_error() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        queue = device.queue(0)
        done, lost = queue.submit(b"abc", 8), queue.submit(b"def", 8)
        fake.use(head_of(fake), 1, call=False)
        fake.signal(SetVringErr)
        assert queue.wait(done).written == 1
        with pytest.raises(VirtqueueError, match="reports an error"):
            queue.wait(lost)


def test_gone_with_requests_in_flight() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        queue = device.queue(0)
        done, lost = queue.submit(b"abc", 8), queue.submit(b"def", 8)
        fake.use(head_of(fake), 1, call=False)
        fake.hang_up()
        start = time.monotonic()
        assert queue.wait(done).written == 1
        with pytest.raises(ConnectionResetError, match="closed the connection with requests in flight"):
            queue.wait(lost)
        with pytest.raises(ConnectionResetError, match="in flight"):
            queue.wait(lost)
        assert time.monotonic() - start < 5


def test_an_answer_that_nobody_asked_for() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        token = device.queue(0).submit(b"abc", 8)
        fake.write(b"\1")
        with pytest.raises(RemoteProtocolError, match="an answer to nothing"):
            device.queue(0).wait(token)


def test_no_completion_in_time() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        queue = device.queue(0)
        token = queue.submit(b"abc", 8)
        with pytest.raises(TimeoutError, match=r"waited 0\.05 s for queue 0 to complete a request"):
            queue.wait(token, timeout=0.05)
        fake.use(head_of(fake), 3)
        assert queue.wait(token).written == 3


def test_a_storm_of_calls_does_not_stop_the_clock() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        token = device.queue(0).submit(b"abc", 8)
        # An eventfd whose reader cannot empty it: semaphore mode would do the same to a blocking reader.
        stop = time.monotonic() + 5

        quiet = threading.Event()

        def storm() -> None:
            while not quiet.is_set() and time.monotonic() < stop:
                fake.signal(SetVringCall)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            with pytest.raises(TimeoutError):
                device.queue(0).wait(token, timeout=0.2)
        finally:
            quiet.set()
            thread.join()


def test_memory_of_a_request_given_up_waits_for_the_device() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        free = device.ram.available
        with pytest.raises(TimeoutError):
            device.request(b"abc", 8, timeout=0.05)
        # The device may still write into it.
        assert device.ram.available < free
        fake.use(head_of(fake), 8)
        assert device.queue(0).completed() == []
        assert device.ram.available == free


def test_a_timeout_of_zero_looks_once() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        queue = device.queue(0)
        token = queue.submit(b"abc", 8)
        with pytest.raises(TimeoutError):
            queue.wait(token, timeout=0)
        fake.use(head_of(fake), 1)
        assert queue.wait(token, timeout=0).written == 1


def test_full_ring_makes_request_wait_for_room() -> None:
    with Fake() as fake, vhost.connect(fake.peer, queue_size=2) as device:
        token = device.queue(0).submit(b"abc", 8)
        with pytest.raises(TimeoutError):
            device.request(b"def", 8, timeout=0.05)
        fake.use(head_of(fake), 1)
        assert device.queue(0).wait(token).written == 1


def test_a_kept_exception_keeps_no_memory(mappings: Callable[..., list[str]]) -> None:
    with Fake() as fake:
        with vhost.connect(fake.peer, indirect=False, queue_size=4) as device:
            token = device.queue(0).submit(b"abc", 8)
            with pytest.raises(ValueError, match="5 pieces") as too_long:
                device.queue(0).submit([b"x"] * 5)
            fake.use(77, 0)
            with pytest.raises(VirtqueueError) as broken:
                device.queue(0).wait(token)
        ours = [line for line in mappings() if "vhost-guest-ram" in line]
        assert len(ours) == 1  # that of the fake
    assert too_long.value.__traceback__
    assert broken.value.__traceback__
