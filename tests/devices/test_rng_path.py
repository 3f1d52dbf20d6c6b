# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The native data path of the random number generator."""

import logging
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from vhost import Device
from vhost._core import ffi
from vhost.devices.rng import Rng

from .rig import Rig

MakeRig = Callable[[Device], Rig]
STOCK, MOST = 16384, 65536


class Native:
    """A rig, and the path served by hand."""

    def __init__(self, driver: Rig) -> None:
        assert isinstance(driver.device, Rng)
        self.driver, self.device = driver, driver.device
        self.path = self.device.path(driver.queue)

    @property
    def core(self) -> Any:
        """The ``struct vh_rng_path``."""
        return ffi.cast("struct vh_rng_path *", self.path)

    def serve(self, *rooms: int | tuple[int, ...]) -> list[tuple[int, bytes]]:
        """The answers to requests with these rooms, served as one batch."""
        for room in rooms:
            self.driver.offer(room=room)
        batch = self.driver.queue.pop()
        assert self.path.serve(self.path, self.driver.queue._q, batch.cdata) == 0
        batch.push()
        return self.driver.answers()


@pytest.fixture
def native(rig: MakeRig) -> Native:
    return Native(rig(Rng()))


def distinct(answers: list[tuple[int, bytes]]) -> bool:
    """Whether no 8 bytes in a row were given twice."""
    words = [data[at : at + 8] for used, data in answers for at in range(0, used - 7, 8)]
    return len(set(words)) == len(words)


def test_small_requests_are_filled_by_one_call(native: Native) -> None:
    answers = native.serve(*[64] * 60)
    assert [used for used, _ in answers] == [64] * 60
    assert distinct(answers)
    assert native.core.calls == 1
    again = native.serve(*[64] * 60)
    assert distinct(answers + again)
    assert native.core.calls == 2


def test_requests_of_all_sizes(native: Native) -> None:
    rng = random.Random(1)
    for _ in range(20):
        rooms = []
        for _ in range(20):
            size = rng.choice((1, 8, 64, 1000, 4096, STOCK - 1, STOCK, STOCK + 1, 20000, MOST, MOST + 1))
            cut = rng.randrange(size)
            rooms.append((cut, size - cut) if cut else (size,))
        answers = native.serve(*rooms)
        assert [used for used, _ in answers] == [min(sum(room), MOST) for room in rooms]
        assert distinct(answers)
        for used, data in answers:
            assert used < 64 or len(set(data[:used])) > 16  # filled
            assert data[used:] == b"\xee" * (len(data) - used)  # and no further


def test_nothing_that_was_given_stays(native: Native) -> None:
    for rooms in ([64] * 10, [STOCK], [STOCK + 1], [9000, 9000, 9000], [MOST]):
        answers = native.serve(*rooms)
        assert sum(used for used, _ in answers) == sum(rooms)
        assert bytes(ffi.buffer(native.core.stock)) == bytes(STOCK)


def test_requests_without_room_are_returned(rig: MakeRig) -> None:
    native = Native(rig(Rng()))
    native.driver.offer(room=8)
    native.driver.offer(b"hello", room=16)
    native.driver.offer(b"hello")
    batch = native.driver.queue.pop()
    assert native.path.serve(native.path, native.driver.queue._q, batch.cdata) == 2
    for chain in batch.left():
        native.device.process(chain)
    batch.push()
    assert [used for used, _ in native.driver.answers()] == [8, 16, 0]


def test_readable_bytes_get_one_warning(native: Native, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        native.driver.offer(b"hello", room=16)
    batch = native.driver.queue.pop()
    native.path.serve(native.path, native.driver.queue._q, batch.cdata)
    for chain in batch.left():
        native.device.process(chain)
    batch.push()
    assert distinct(native.driver.answers())
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "the driver sends 5 bytes to a device that only gives: ignored"
    ]


@pytest.mark.parametrize(
    "device",
    [Rng(os.urandom), Rng(max_bytes=100), Rng(lambda n: bytes(n))],
    ids=["another source", "a quota", "a function"],
)
def test_what_is_for_python_has_no_path(rig: MakeRig, device: Rng) -> None:
    assert device.path(rig(device).queue) is None
