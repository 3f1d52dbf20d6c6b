# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A device that leaves what is there is called again when there is more, on every kind of ring."""

import asyncio
import socket
import threading
from collections.abc import Callable

import pytest

import vhost
from tests.frontend.served import Reverse
from vhost.backend import Polling, Stop
from vhost.virtqueue import Queue

TIMEOUT = 30.0


class Shy(Reverse):
    """Takes nothing before it has been asked with so many chains there."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Semaphore(0)
        self.willing = False

    def handle(self, queue: Queue) -> float | None:
        if not self.willing:
            if queue.available():
                self.asked.release()
            return None
        return super().handle(queue)


def in_threads(device: vhost.Device, sock: socket.socket, stop: Stop) -> None:
    vhost.serve(device, sock=sock, stop=stop)


def always_polling(device: vhost.Device, sock: socket.socket, stop: Stop) -> None:
    vhost.serve(device, sock=sock, stop=stop, polling=Polling(always=True))


def in_event_loop(device: vhost.Device, sock: socket.socket, stop: Stop) -> None:
    asyncio.run(vhost.serve_async(device, sock=sock, stop=stop))


@pytest.mark.usefixtures("no_leaks", "unix_build")
@pytest.mark.parametrize("serve", [in_threads, always_polling, in_event_loop])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_what_comes_later(
    packed: bool, event_idx: bool, serve: Callable[[vhost.Device, socket.socket, Stop], None]
) -> None:
    device = Shy()
    ours, theirs = socket.socketpair()
    with Stop() as stop:
        thread = threading.Thread(target=serve, args=(device, theirs, stop))
        thread.start()
        try:
            with vhost.connect(ours, packed=packed, event_idx=event_idx, timeout=TIMEOUT) as frontend:
                queue = frontend.queue(0)
                tokens = []
                for n in range(5):
                    tokens.append(queue.submit(bytes([n, 9]), 2))
                    assert device.asked.acquire(timeout=TIMEOUT), f"not called for chain {n}"
                device.willing = True
                tokens.append(queue.submit(b"ab", 2))
                assert [queue.wait(token).data for token in tokens] == [
                    *(bytes([9, n]) for n in range(5)),
                    b"ba",
                ]
        finally:
            ours.close()
            stop.set()
            thread.join(TIMEOUT)
            assert not thread.is_alive()
