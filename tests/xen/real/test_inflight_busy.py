# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A device that is busy: what waits for it, what a guest can take back, memory that keeps changing."""

import os
import threading
from pathlib import Path

import pytest

from .holder import COUNT, SIZE, WAYS, Way, served
from .puppet import Puppet
from .watch import SECONDS

pytestmark = pytest.mark.timeout(300)

COPIED, MAPPED = WAYS["copied"], WAYS["mapped"]
MORE = 100  # requests

modes = pytest.mark.parametrize("mode", ["threads", "asyncio"])
on_demand = pytest.mark.parametrize("way", [COPIED, MAPPED], ids=["copied", "mapped"])


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_memory_goes_when_the_device_is_done(hvm: Puppet, tmp_path: Path, way: Way) -> None:
    """The front-end is answered when nothing of its regions is used any more."""
    with served(hvm, tmp_path, way) as device:
        guest = device.connect()
        device.device.blocks = True
        guest.fill()
        removed = threading.Event()

        def remove() -> None:
            for area in guest.areas:
                guest.guest.remove(area)
            removed.set()

        front_end = threading.Thread(target=remove)
        front_end.start()
        try:
            assert not removed.wait(0.3)
            assert list(guest.driver.done()) == []
            assert ("requests" in guest.in_use()) == (way is not COPIED)
        finally:
            device.device.told.set()
            front_end.join()
        assert list(guest.driver.done()) == guest.answers
        assert guest.in_use() == {"ring"}
        for area in guest.areas:
            guest.guest.add(area)
        guest.expect_service()
        assert device.errors() == []


@modes
def test_what_is_mapped_cannot_be_taken_back(hvm: Puppet, tmp_path: Path, mode: str) -> None:
    with served(hvm, tmp_path, MAPPED, mode) as device:
        guest = device.connect()
        guest.fill()
        place = guest.driver.ref(guest.driver.writable + 1)
        with pytest.raises(OSError, match="busy"):
            hvm.revoke(place)
        device.device.told.set()
        assert guest.guest.answers(COUNT) == guest.answers
        hvm.revoke(place)
        guest.expect_service()
        assert device.errors() == []


@modes
def test_what_is_copied_can_be_taken_back(hvm: Puppet, tmp_path: Path, mode: str) -> None:
    """Then the answer finds no place, and the ring breaks; those of the other requests have arrived."""
    with served(hvm, tmp_path, COPIED, mode) as device:
        guest = device.connect()
        guest.fill()
        page = guest.driver.writable + 1
        hvm.revoke(guest.driver.ref(page))
        device.device.told.set()
        assert guest.guest.frontend.broken(seconds=SECONDS)
        assert list(guest.driver.done()) == [guest.answers[slot] for slot in (0, 2, 3)]
        assert guest.guest.frontend.stop() == COUNT
        assert guest.in_use() == set()
        (error,) = device.errors()
        assert "ring 0 is broken until it is set up anew: queue 0: the guest's grants cannot be used" in error
        hvm.grant(guest.driver.ref(page), page)
        guest.guest.frontend.start(guest.driver.place, base=COUNT)
        guest.expect_service()
        assert device.errors() == [error]


@modes
@on_demand
def test_memory_that_changes_under_load(hvm: Puppet, tmp_path: Path, mode: str, way: Way) -> None:
    with served(hvm, tmp_path, way, mode) as device:
        device.device.told.set()
        guest, ended, changes = device.connect(), threading.Event(), 0

        def change() -> None:
            nonlocal changes
            while not ended.is_set():
                guest.share()
                changes += 1

        front_end = threading.Thread(target=change)
        front_end.start()
        try:
            data = [os.urandom(SIZE) for _ in range(MORE)]
            answers = dict(guest.guest.stream(([one], [SIZE]) for one in data))
        finally:
            ended.set()
            front_end.join()
        assert [answers[number] for number in range(MORE)] == [one[::-1] for one in data]
        assert changes > 2
        guest.expect_service(MORE)
        assert device.errors() == []
