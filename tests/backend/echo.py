# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A device for tests: answers with the request reversed, and does as odd requests tell it."""

from vhost import Device
from vhost.errors import DeviceError
from vhost.virtqueue import Chain, Queue


class Echo(Device):
    """Two queues and a configuration space of eight bytes."""

    name = "echo"
    num_queues = 2
    max_queue_size = 256
    offers_config = True

    def __init__(self) -> None:
        self.events: list[str] = []
        self.space = bytearray(b"01234567")

    def process(self, chain: Chain) -> None:
        data = chain.read()
        if data == b"raise":
            raise ZeroDivisionError("told to")
        if data == b"refuse":
            raise DeviceError("told to refuse")
        chain.write(data[::-1])

    def config(self) -> bytes:
        return bytes(self.space)

    def set_config(self, offset: int, data: bytes, *, migration: bool = False) -> None:
        if offset + len(data) > len(self.space):
            raise DeviceError(f"{len(data)} bytes at {offset} do not fit")
        self.space[offset : offset + len(data)] = data

    def negotiated(self, features: int) -> None:
        self.events.append(f"negotiated {features:#x}")

    def start(self, queue: Queue) -> None:
        self.events.append(f"start {queue.index}")

    def stop(self, index: int) -> None:
        self.events.append(f"stop {index}")

    def reset(self) -> None:
        self.events.append("reset")
