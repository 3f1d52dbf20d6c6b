# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A load against a device in another thread: all requests go out and come back, on every kind of ring."""

import os
import threading
from typing import Any

import pytest

from tests.virtqueue.model import PackedDevice, Rig
from vhost.errors import VirtqueueError
from vhost.virtqueue import Load


class Server(threading.Thread):
    """Serves the ring of a rig until it has seen so many requests; sleeps until it is kicked."""

    def __init__(self, rig: Rig, count: int) -> None:
        super().__init__()
        self.rig, self.count, self.seen = rig, count, 0
        self.kick, self.call = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
        os.set_blocking(self.kick, True)

    def run(self) -> None:
        device = self.rig.device
        while self.seen < self.count:
            chain = device.take()
            if chain is None:
                device.kicks(True)
                if device.idle():
                    os.eventfd_read(self.kick)
                device.kicks(False)
                continue
            self.seen += 1
            device.give(chain, chain.room)
            if device.call_wanted(chain.slots if isinstance(device, PackedDevice) else 1):
                os.eventfd_write(self.call, 1)


@pytest.mark.parametrize("kind", [{}, {"big_endian": True}, {"packed": True}, {"in_order": True}], ids=str)
@pytest.mark.parametrize("table_len", [0, 4])
@pytest.mark.parametrize("sleep", [False, True])
def test_all_comes_back(no_leaks: None, kind: dict[str, Any], table_len: int, sleep: bool) -> None:
    rig = Rig(16, table_len=table_len, event_idx=True, check=True, **kind)
    server = Server(rig, 3000)
    requests = [([(0x1000 * n, 8)], [(0x1000 * n + 64, 10 + n)]) for n in range(6)]
    load = Load(
        rig.driver, requests, batch=2, limit=3000, kick_fd=server.kick, call_fd=server.call if sleep else -1
    )
    rig.device.kicks(True)
    server.start()
    try:
        for _ in range(300):
            if load.run(0.1):
                break
    finally:
        server.join(20)
        os.close(server.kick)
        os.close(server.call)
    assert (load.sent, load.done, server.seen, rig.driver.free) == (3000, 3000, 3000, 16)
    assert 10 * 3000 <= load.written <= 15 * 3000
    assert load.kicks > 0
    assert bool(load.sleeps) == sleep
    # The ring is as good as new for whoever comes next.
    assert rig.driver.add([(0, 1)], []) >= 0


def test_a_load_is_ended() -> None:
    rig = Rig(8)
    load = Load(rig.driver, [([(0, 1)], [])] * 3)
    assert not load.run(0.01)
    assert (load.sent, load.done, rig.driver.free) == (3, 0, 5)
    load.finish()
    assert not load.run(0.01)
    while (chain := rig.device.take()) is not None:
        rig.device.give(chain, 0)
    assert load.run(0.01)
    assert (load.sent, load.done, rig.driver.free) == (3, 3, 8)


def test_a_device_that_lies() -> None:
    rig = Rig(8)
    load = Load(rig.driver, [([(0, 1)], [])])
    assert not load.run(0.01)
    rig.device.write(5, 0)
    rig.device.used = 1
    rig.device.publish()  # type: ignore[union-attr]
    with pytest.raises(VirtqueueError, match="not in flight"):
        load.run(0.01)


def test_requests_that_do_not_fit() -> None:
    rig = Rig(4)
    for requests in ([], [([(0, 1)], [])] * 5, [([(0, 1)], []), ([(0, 1)], [(0, 1)])], [([], [])]):
        with pytest.raises(ValueError, match="all of as many buffers"):
            Load(rig.driver, requests)
