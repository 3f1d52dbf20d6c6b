# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A device that keeps its requests until it is told to answer, in this process, and a guest that waits."""

import os
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.backend import peer, serving
from tests.backend.serving import Serving
from vhost import Device
from vhost.mem.xen import XenMemory
from vhost.virtqueue import Batch, Queue

from .driver import DATA, Driver
from .frontend import GRANT, NO_ADVANCE
from .guest import Guest
from .puppet import Puppet, until
from .watch import SECONDS, Holdings

__all__ = ("COUNT", "SIZE", "WAYS", "Holder", "Served", "Waiting", "Way", "served")

PAGE = 4096
COUNT = 4  # requests
SIZE = 700  # bytes of each, and of its answer
LOOK_SECONDS = 0.005


class Way(NamedTuple):
    """How a device gets at its requests: xen flags of the memory, and options of how it is reached."""

    flags: int
    options: dict[str, int]


WAYS = {
    "copied": Way(GRANT | NO_ADVANCE, {"copy_each": PAGE}),
    "mapped": Way(GRANT | NO_ADVANCE, {"copy_each": 0, "copy_all": 0}),
    "kept": Way(GRANT | NO_ADVANCE, {"grant_cache": 64, "copy_each": 0}),
    "in advance": Way(GRANT, {}),
}


class Holder(Device):
    """Answers with what requests say in reverse, once it is told to."""

    name = "holder"

    def __init__(self) -> None:
        self.told = threading.Event()
        self.finishes = True  # when the ring stops
        self.blocks = False  # takes no more calls until it is told
        self.held: list[Batch] = []
        self.answered: list[Batch] = []  # once pushed, they hold nothing

    def handle(self, queue: Queue) -> float | None:
        while batch := queue.pop():
            self.held.append(batch)
        if self.held and (self.told.is_set() or (self.blocks and self.told.wait(SECONDS))):
            self.finish()
        return LOOK_SECONDS if self.held else None

    def stop(self, index: int) -> None:
        if self.finishes:
            self.finish()

    def finish(self) -> None:
        """Answers what it has."""
        self.answered, self.held = self.held, []
        for batch in self.answered:
            for chain in batch:
                chain.write(chain.read()[::-1])
            batch.push()

    @property
    def count(self) -> int:
        """Requests that it has."""
        return sum(len(batch) for batch in self.held)


class Waiting:
    """A guest that waits for the answers to its requests.

    :param socket: where the device is served.
    """

    def __init__(self, socket: Path, device: Holder, puppet: Puppet, way: Way) -> None:
        self.device, self.way = device, way
        self.driver = Driver(puppet, way.flags, slots=COUNT + 1)
        first, last = self.driver.readable, self.driver.pages
        self.ring = self.driver.region(0, DATA)
        self.areas = self.driver.region(DATA, first), self.driver.region(first, last)
        self.data = [os.urandom(SIZE) for _ in range(COUNT)]
        self.guest = Guest(socket, self.driver)
        self.share()
        self.guest.frontend.start(self.driver.place)

    def share(self) -> None:
        """Shares all its memory."""
        self.guest.frontend.share([self.ring, *self.areas])

    def fill(self) -> None:
        """Gives the device its requests."""
        for slot, data in enumerate(self.data):
            self.driver.add(slot, [data], [SIZE])
        self.guest.submit()
        until(lambda: self.device.count == COUNT)

    @property
    def answers(self) -> list[tuple[int, bytes]]:
        """What it is to be answered."""
        return [(slot, data[::-1]) for slot, data in enumerate(self.data)]

    @property
    def room(self) -> bytes:
        """What is where the answers belong."""
        pages = range(self.driver.writable, self.driver.writable + COUNT)
        return b"".join(bytes(self.driver.puppet.memory[page * PAGE :][:SIZE]) for page in pages)

    def in_use(self) -> set[str]:
        """What of its memory somebody uses: ``ring``, ``requests``, and the ``rest`` of its areas.

        :raises AssertionError: not all pages of one are in use alike.
        """
        found = {ref - self.driver.ref(0) for ref in self.driver.puppet.grants_in_use()}
        requests = {first + n for first in (self.driver.writable, self.driver.readable) for n in range(COUNT)}
        parts: dict[str, Set[int]] = {"ring": set(range(DATA)), "requests": requests}
        parts["rest"] = set(range(DATA, self.driver.pages)) - requests
        used = {name for name, pages in parts.items() if pages <= found}
        assert found == set().union(*(parts[name] for name in used)), f"pages {sorted(found)}"
        return used

    def expect_service(self, base: int = COUNT) -> None:
        """The device answers requests, after so many others, and keeps nothing; ends the session."""
        self.device.told.set()
        self.device.finishes = True
        with self.guest:
            assert self.guest.request([b"next"], [SIZE], slot=COUNT) == b"txen"
            assert self.guest.frontend.stop() == base + 1
            self.guest.frontend.share([])
            assert self.in_use() == set()


class Served:
    """A holder that is served, and its guests."""

    def __init__(self, server: Serving, device: Holder, puppet: Puppet, way: Way) -> None:
        self.server, self.device, self.puppet, self.way = server, device, puppet, way

    def connect(self) -> Waiting:
        """A guest, one after the other."""
        return Waiting(self.server.path, self.device, self.puppet, self.way)

    def errors(self) -> list[str]:
        """Errors in its log."""
        return self.server.lines.having("", "ERROR")


@contextmanager
def served(puppet: Puppet, folder: Path, way: Way, mode: str = "threads") -> Iterator[Served]:
    """Serves a holder, by threads or with an event loop (``asyncio``); in the end everything is as before."""
    before = Holdings.of(os.getpid())
    device = Holder()
    with pytest.MonkeyPatch.context() as patch:
        for module in (peer, serving):
            patch.setattr(module, "TIMEOUT", SECONDS)
        with Serving(device, mode, folder / "socket", partial(XenMemory, **way.options)) as server:
            yield Served(server, device, puppet, way)
    assert puppet.grants_in_use() == []
    now = Holdings.of(os.getpid())
    assert now == before, f"before: {before}; now: {now}"
