# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A driver in a puppet's pages and its front-end: a session with a daemon."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from vhost.protocol import AddMemReg, MemoryRegion, ProtocolFeature, RemMemReg, VirtioFeature

from .driver import Driver
from .frontend import FEATURES, PROTOCOL_FEATURES, Frontend
from .watch import SECONDS

__all__ = ("Guest", "Request")

#: What the device is to read, and the room it has for its answer: a descriptor for each.
Request = tuple[Sequence[bytes], Sequence[int]]


class Guest:
    """A session whose features are negotiated. A context manager; at its end the connection is closed.

    :param socket: of the daemon.
    """

    def __init__(self, socket: Path, driver: Driver) -> None:
        self.driver = driver
        self.frontend = Frontend(socket, seconds=SECONDS)
        indirect = VirtioFeature.RING_INDIRECT_DESC if driver.queue.table_len else 0
        self.frontend.negotiate(FEATURES | indirect, PROTOCOL_FEATURES | ProtocolFeature.CONFIGURE_MEM_SLOTS)

    @classmethod
    def running(cls, socket: Path, driver: Driver) -> Self:
        """A session whose memory is shared and whose ring runs."""
        guest = cls(socket, driver)
        guest.frontend.share(driver.regions())
        guest.frontend.start(driver.place)
        return guest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.frontend.close()

    def add(self, region: MemoryRegion) -> None:
        """Adds a region to the memory that is shared."""
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.frontend.tell(AddMemReg(region), [fd])
        finally:
            os.close(fd)

    def remove(self, region: MemoryRegion) -> None:
        """Takes it away again."""
        self.frontend.tell(RemMemReg(region))

    def submit(self) -> None:
        """Shows the device what was queued."""
        if self.driver.queue.publish():
            self.frontend.kick()

    def answers(self, count: int) -> list[tuple[int, bytes]]:
        """Waits for so many answers: slot and content, in the device's order."""
        found: list[tuple[int, bytes]] = []
        while len(found) < count:
            found += self.driver.done()
            if len(found) < count:
                assert self.frontend.called(SECONDS), f"{len(found)} answers instead of {count}"
        return found

    def request(self, readable: Sequence[bytes], writable: Sequence[int], *, slot: int = 0) -> bytes:
        """One request, and what it is answered with."""
        self.driver.add(slot, readable, writable)
        self.submit()
        ((_, answer),) = self.answers(1)
        return answer

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[int, bytes]]:
        """Does requests, as many at a time as there are slots; number and answer of each, as they come."""
        free = list(range(self.driver.slots))
        numbers: dict[int, int] = {}
        for number, (readable, writable) in enumerate(requests):
            if not free:
                self.submit()
                for slot, answer in self.answers(1):
                    free.append(slot)
                    yield numbers.pop(slot), answer
            slot = free.pop()
            numbers[slot] = number
            self.driver.add(slot, readable, writable)
        self.submit()
        for slot, answer in self.answers(len(numbers)):
            yield numbers.pop(slot), answer
