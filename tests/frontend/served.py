# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices of ours, served in a thread of the test process on one end of a socket pair."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import vhost
from vhost.backend import Stop
from vhost.errors import DeviceError
from vhost.virtqueue import Chain


class Reverse(vhost.Device):
    """Writes back what it reads, backwards; keeps to itself, or breaks, when told to."""

    name = "reverse"
    num_queues = 2
    offers_config = True

    def __init__(self) -> None:
        self.space = bytearray(16)
        self.lengths: list[tuple[int, int]] = []

    def process(self, chain: Chain) -> None:
        self.lengths.append((chain.readable, chain.writable))
        data = chain.read()
        if data == b"break":
            raise DeviceError("told to")
        chain.write(data[::-1])

    def config(self) -> bytes:
        return bytes(self.space)

    def set_config(self, offset: int, data: bytes, *, migration: bool = False) -> None:
        if offset + len(data) > len(self.space):
            raise DeviceError("beyond the end")
        self.space[offset : offset + len(data)] = data


@contextmanager
def served(device: vhost.Device, features: str = "") -> Iterator[socket.socket]:
    """The frontend's end of a connection to a backend that serves `device`."""
    ours, theirs = socket.socketpair()
    with Stop() as stop:
        options = {"sock": theirs, "stop": stop, "features": features}
        thread = threading.Thread(target=vhost.serve, args=(device,), kwargs=options)
        thread.start()
        try:
            yield ours
        finally:
            ours.close()
            stop.set()
            thread.join(20)
            assert not thread.is_alive()
