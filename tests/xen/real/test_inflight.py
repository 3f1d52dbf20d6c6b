# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Requests that are with the device while their memory, their ring or their session goes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from .holder import COUNT, SIZE, WAYS, Served, Waiting, Way, served
from .puppet import Puppet, until

pytestmark = pytest.mark.timeout(300)

IN_ADVANCE, COPIED, MAPPED = WAYS["in advance"], WAYS["copied"], (WAYS["mapped"], WAYS["kept"])


class Event(NamedTuple):
    """What happens, and what there is afterwards: a started ring, the areas of requests, a session."""

    happens: Callable[[Served, Waiting], None]
    ring: bool = False
    areas: bool = False
    session: bool = True

    def left(self, way: Way, *, held: bool) -> set[str]:
        """What is in use afterwards; `held`: and the device has its requests still."""
        if way is IN_ADVANCE:
            ring, areas = {"ring"} if self.session else set(), {"requests", "rest"} if self.areas else set()
            return {"ring", "requests", "rest"} if held else ring | areas
        requests = {"requests"} if held and way in MAPPED else set()
        return ({"ring"} if self.ring else set()) | requests


def replace(device: Served, guest: Waiting) -> None:
    guest.share()


def remove(device: Served, guest: Waiting) -> None:
    for area in guest.areas:
        guest.guest.remove(area)


def stop(device: Served, guest: Waiting) -> None:
    assert guest.guest.frontend.stop() == COUNT


def disconnect(device: Served, guest: Waiting) -> None:
    guest.guest.frontend.close()
    device.server.lines.wait("connection ended")


EVENTS = {
    "memory replaced": Event(replace, ring=True, areas=True),
    "regions removed": Event(remove, ring=True),
    "ring stopped": Event(stop, areas=True),
    "disconnected": Event(disconnect, session=False),
}
events = pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)


def expect_service(device: Served, guest: Waiting, event: Event) -> None:
    """The device answers requests, in this session or the next."""
    if not event.session:
        device.connect().expect_service(0)
        return
    if not event.ring:
        guest.guest.frontend.start(guest.driver.place, base=COUNT)
    elif not event.areas:
        for area in guest.areas:
            guest.guest.add(area)
    guest.expect_service()


@pytest.mark.parametrize(
    ("mode", "way"),
    [*(("threads", way) for way in WAYS.values()), ("asyncio", COPIED), ("asyncio", MAPPED[0])],
    ids=[*(f"threads-{name}" for name in WAYS), "asyncio-copied", "asyncio-mapped"],
)
@events
def test_requests_that_are_finished_first(
    hvm: Puppet, tmp_path: Path, mode: str, way: Way, event: Event
) -> None:
    """The device answers when it hears that the ring stops, before anything is taken away."""
    with served(hvm, tmp_path, way, mode) as device:
        guest = device.connect()
        guest.fill()
        event.happens(device, guest)
        assert list(guest.driver.done()) == guest.answers
        assert guest.in_use() == event.left(way, held=False)
        expect_service(device, guest, event)
        assert device.errors() == []


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@events
@pytest.mark.parametrize(("mode", "drops"), [("threads", False), ("asyncio", True)], ids=["late", "never"])
def test_requests_that_are_not_finished(
    hvm: Puppet, tmp_path: Path, mode: str, drops: bool, way: Way, event: Event
) -> None:
    """The device answers too late or never: the memory is there until then. The guest hears of it where its
    ring goes on."""
    with served(hvm, tmp_path, way, mode) as device:
        holder, guest = device.device, device.connect()
        holder.finishes = False
        guest.fill()
        room = guest.room
        event.happens(device, guest)
        lost = [f"holder: ring 0: the device has not returned {COUNT} of {COUNT} chains"]
        assert device.errors() == ([] if event.ring else lost)
        assert guest.in_use() == event.left(way, held=True)
        answered: list[tuple[int, bytes]] = []
        if drops:
            holder.held.clear()
        elif event.ring:
            holder.told.set()
            until(lambda: answered.extend(guest.driver.done()) or len(answered) == COUNT)
        else:
            holder.finish()
        assert guest.in_use() == event.left(way, held=False)
        assert answered + list(guest.driver.done()) == (guest.answers if event.ring and not drops else [])
        answers = b"".join(answer for _, answer in guest.answers)
        stays = drops or (way is COPIED and not event.ring)
        assert guest.room == (room if stays else answers)
        expect_service(device, guest, event)
        if event.ring:
            lost = [f"holder: ring 0: the device has not returned {COUNT} of {COUNT + 1} chains"] * drops
        assert device.errors() == lost


@pytest.mark.parametrize("way", [*MAPPED, IN_ADVANCE], ids=["mapped", "kept", "in advance"])
@events
def test_views_that_outlive_their_requests(hvm: Puppet, tmp_path: Path, way: Way, event: Event) -> None:
    """What the device still sees is mapped, whatever became of the request, the ring and the session."""
    with served(hvm, tmp_path, way) as device:
        holder, guest = device.device, device.connect()
        holder.finishes = False
        guest.fill()
        views = [batch[index].writable_iov()[0][:] for batch in holder.held for index in range(len(batch))]
        event.happens(device, guest)
        holder.held.clear()
        assert "requests" in guest.in_use()
        for view in views:
            view[:] = b"late".ljust(SIZE, b"!")
        assert guest.room == b"late".ljust(SIZE, b"!") * COUNT
        view.release()
        views.clear()
        assert guest.in_use() == event.left(way, held=False)
        expect_service(device, guest, event)
