# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""How a ring meets what changes around it: memory that comes and goes, and translations that it waits for."""

from collections.abc import Iterator
from contextlib import contextmanager

from vhost._core import lib
from vhost.backend.life import Life
from vhost.errors import GuestMemoryError
from vhost.virtqueue import Lane, Miss, RingLayout

__all__ = ("Waiting",)


class Waiting(Life):
    """A ring as guest memory and :class:`.Translations` know it."""

    def refresh(self) -> None:
        """There is more guest memory than before, perhaps what the ring rests for. What Python pops is popped
        with it anyway."""
        if self._served:
            if self.lane is not None and self.lane.native:
                self.lane.queue.refresh()
        elif self._host.iotlb is None:
            self._resume()

    @contextmanager
    def changed(self) -> Iterator[None]:
        """What was negotiated changes inside; a started ring then goes on with it, or breaks."""
        self._halt()
        try:
            yield
        finally:
            self._resume()

    @contextmanager
    def moved(self) -> Iterator[None]:
        """Guest memory changes inside. A started ring then goes on if it is in it, or rests."""
        self._halt(leave=True)
        try:
            yield
        finally:
            self._resume()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What the ring is served with changes inside, and no chain is with the device, but its memory
        stays."""
        self._rest()
        if self.lane is not None:
            self.lane.drain()
        try:
            yield
        finally:
            if self._queue is not None and self._served:
                self._queue.refresh()
                self._log(self._queue)
            self._settle()

    def translated(self) -> None:
        """The translations that the ring waits for are there, or it has to ask for them; in the control
        plane's thread."""
        if self.broken or not self.state.started:
            return
        lane = self.lane
        if lane is None or not self._served:
            self._halt(leave=True)
            self._resume()
        elif not self._suspended:
            self._wake(lane)
        elif missing := self._missing():
            self._host.translations.ask(self, missing)
        elif self._stays():
            self._wake(lane)
        else:
            self._host.translations.reopened += 1
            self._halt(leave=True)
            self._resume()

    def denied(self, miss: Miss) -> None:
        """The front-end does not permit what the ring needs; in the control plane's thread."""
        access = "writing" if miss.write else "reading"
        self.fail(f"the front-end's translation of I/O address {miss.address:#x} does not permit {access}")

    def uses(self, iova: int, size: int) -> bool:
        """Whether the ring itself has one of these I/O addresses."""
        addresses = self._settings.addresses
        if addresses is None or not self._sized:
            return False
        parts = addresses.everything(RingLayout(self._settings.size, self._packed))
        return any(address < iova + size and iova < address + length for address, length in parts)

    @contextmanager
    def without(self, iova: int, size: int) -> Iterator[None]:
        """Translations of these addresses go inside, where no chain that was popped with them is in use. A
        ring that has some of its own there is suspended: it goes on when they are there again."""
        lane = self.lane
        self._rest()
        if lane is not None and (steps := lane.queue.steps) is not None and steps.uses(iova, size):
            self._put_back(lane)
        if lane is not None and not lane.native and lane.queue.held > (lane.queue.steps is not None):
            self._host.translations.reopened += 1
            with self.moved():
                yield
            return
        busy = False
        if lane is not None:
            lane.drain()
            if self.uses(iova, size) and not (self._suspended or self.broken):
                busy = self._suspend(lane)
        try:
            yield
        finally:
            if lane is not None and not self._suspended:
                lane.queue.refresh()
            self._settle()
            if busy:
                self.translated()  # or not yet: it asks then

    def heard(self) -> None:
        """The ring was kicked while it waits for translations: it asks, also for what the front-end has been
        asked for and has not answered."""
        lane, addresses = self.lane, self._settings.addresses
        if self.broken or addresses is None:
            return
        if lane is not None and not self._suspended:
            self._seek(lane, again=True)
            return
        translations, missing = self._host.translations, self._missing()
        if translations.ask(self, missing, again=True) or lane is None:
            return
        if self._stays():
            self._wake(lane)
            return
        # Only the control plane can set the ring up anew, which it does when it is told once more.
        for address, size in addresses.everything(RingLayout(self._settings.size, self._packed)):
            translations.invalidate(address, size)
        translations.ask(self, self._missing())

    def _ask(self, lane: Lane) -> None:
        # The answer may be there before this returns.
        lane.cdata.off = lib.VH_LISTEN
        lane.queue.kicks_past()
        self.kick.drain()  # whatever it was for is seen now
        self._seek(lane)

    def _seek(self, lane: Lane, *, again: bool = False) -> None:
        needed, ahead = lane.queue.lacking()
        if not self._host.translations.ask(self, needed, ahead, again=again):
            self._wake(lane)

    def _suspend(self, lane: Lane) -> bool:
        # While its pages may still be touched. Says whether the ring has something to do.
        waited = lane.cdata.off == lib.VH_LISTEN
        busy = lane.queue.kicks_on() or waited or self._polled or lane.queue.steps is not None
        self._suspended = True
        lane.cdata.off = lib.VH_LISTEN
        self._host.translations.leave(self)
        return busy and self.state.enabled

    def _stays(self) -> bool:
        # Whether a suspended ring is where it was before.
        addresses, iotlb = self._settings.addresses, self._host.iotlb
        assert addresses is not None
        layout = RingLayout(self._settings.size, self._packed)
        try:
            places = addresses.find(self._memory, layout, iotlb)
            return places == self._places and addresses.logged(layout, iotlb) == self._logged
        except GuestMemoryError:
            return False

    def _wake(self, lane: Lane) -> None:
        self._suspended = False
        self.refresh()
        # What the device did not take for want of a translation it has not declined.
        lane.cdata.look = 1
        lane.cdata.off = lib.VH_OFF if self.broken else lib.VH_ON
        if self._runner is not None:
            self._runner.nudge()
