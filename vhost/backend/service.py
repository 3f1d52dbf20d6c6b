# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""How a ring is served while it runs: what its runner calls."""

import logging
import time
import traceback
from abc import ABC, abstractmethod
from typing import Any

from vhost._core import lib
from vhost.backend.notifier import Notifier
from vhost.devices.device import Device
from vhost.errors import VirtqueueError
from vhost.virtqueue import Lane, Miss, Queue

__all__ = ("Service",)

log = logging.getLogger("vhost.backend")

# Seconds between two looks at a ring whose driver never kicks.
POLL_INTERVAL = 0.001
# Chains served in one go; then the others, the event loop and the control plane have their turn.
BUDGET = 1024


class Service(ABC):
    """A ring as its runner sees it."""

    def __init__(self, index: int, device: Device) -> None:
        self.index = index
        self.name = f"{device.name}: ring {index}"
        self.kick = Notifier(f"kick descriptor of ring {index}", taken=True)
        #: Out of order until it is set up anew, because of its driver or its device.
        self.broken = False
        #: What a runner runs; there is one while the ring is to be served and its memory is found.
        self.lane: Lane | None = None
        self._call = Notifier(f"call descriptor of ring {index}")
        self._err = Notifier(f"err descriptor of ring {index}")
        self._device = device
        self._polled = False
        # In place of a queue that waits for its pages: a lane that only listens.
        self._ear: Any = None

    @abstractmethod
    def translated(self) -> None:
        """The translations that the ring waits for are there; in the control plane's thread."""

    @abstractmethod
    def denied(self, miss: Miss) -> None:
        """The front-end does not permit what the ring needs; in the control plane's thread."""

    @abstractmethod
    def heard(self) -> None:
        """The ring was kicked while it waits for translations: it asks, also for what the front-end has been
        asked for and has not answered."""

    @abstractmethod
    def _ask(self, lane: Lane) -> None:
        # Wait for the translations that the queue has missed.
        ...

    @property
    def cdata(self) -> Any:
        """What a worker has of the ring: ``struct vh_lane *``, None: nothing."""
        return self._ear if self.lane is None else self.lane.cdata

    @property
    def listening(self) -> bool:
        """Whether it waits for translations, and is only to hear kicks."""
        return self.cdata is not None and self.cdata.off == lib.VH_LISTEN

    def let_go(self) -> None:
        """The runner does not stop: it may wait for a descriptor of the driver, who has made it block."""
        self._call.drain()
        self.kick.signal()

    def kicked(self) -> None:
        """Take the kick; a descriptor that will never bring one again breaks the ring."""
        if reason := self.kick.drain():
            self.fail(f"its kick descriptor has failed: {reason}")
        elif self.listening:
            self.heard()

    def service(self) -> float | None:
        """Look at the ring and serve what is there, up to a limit.

        :returns: seconds after which to call again, 0 for at once; None: when it is kicked.
        """
        lane = self.lane
        if lane is None or self.broken or lane.cdata.off:
            return None
        try:
            if lane.queue.steps is not None:
                return self._step()
            return self._serve_natively(lane) if lane.native else self._serve(lane.queue)
        except VirtqueueError as error:
            self.fail(str(error))
        except Exception as error:
            self.fail(f"the device failed: {error!r}", trace=True)
        return None

    def handle(self) -> None:
        """The device is to serve what is in the queue; when it wants to be called again is noted in the
        lane."""
        lane = self.lane
        assert lane is not None
        queue = lane.queue
        queue.budget = BUDGET
        try:
            delay = self._device.handle(queue)
            if delay is not None:
                lane.cdata.due = time.monotonic_ns() + max(0, int(delay * 1e9))
            if queue.miss is not None:
                self._ask(lane)
        except VirtqueueError as error:
            self.fail(str(error))
        except Exception as error:
            self.fail(f"the device failed: {error!r}", trace=True)

    def attend(self, served: int) -> None:
        """The data path needs Python: `served` says what for (``enum vh_served``)."""
        lane = self.lane
        assert lane is not None
        try:
            if served == lib.VH_S_STEP:
                lane.step()
                lane.cdata.look = 1
            elif served == lib.VH_S_LEFT:
                lane.finish(self._device.process)
                lane.cdata.look = 1
            else:
                lane.queue.check(-lib.VH_E_MISS if served == lib.VH_S_MISS else -1)
            if lane.queue.miss is not None:
                self._ask(lane)
        except VirtqueueError as error:
            self.fail(str(error))
        except Exception as error:
            self.fail(f"the device failed: {error!r}", trace=True)

    def fail(self, reason: str, *, trace: bool = False) -> None:
        """The ring is broken: say so, and serve it no more."""
        self.broken = True
        if self.cdata is not None:
            self.cdata.off = lib.VH_OFF
        # Text only: who keeps a record with an exception keeps its frames, and through them guest memory.
        where = f"\n{traceback.format_exc()}" if trace else ""
        log.error("%s is broken until it is set up anew: %s%s", self.name, reason, where)
        self._err.signal()

    def _step(self) -> float | None:
        self.attend(lib.VH_S_STEP)
        return None if self.broken else 0.0

    def _serve(self, queue: Queue) -> float | None:
        queue.budget = BUDGET
        popped, waiting, offered = queue.popped, queue.available(), queue.offered
        queue.kicks_off()
        delay = self._device.handle(queue)
        if queue.miss is not None:
            assert self.lane is not None
            self._ask(self.lane)
            return None if self.lane.cdata.off else 0.0
        if queue.steps is not None:
            return 0.0
        more = queue.kicks_on()
        # Chains that were there and that the device did not take are its own choice: it would spin otherwise.
        if delay is None and more and (queue.popped != popped or not waiting):
            return 0.0
        if more:
            queue.kicks_past()
            if queue.popped == popped and queue.offered != offered:
                return 0.0
        if self._polled:
            delay = POLL_INTERVAL if delay is None else min(delay, POLL_INTERVAL)
        return None if delay is None else max(delay, 0.0)

    def _serve_natively(self, lane: Lane) -> float | None:
        lane.queue.kicks_off()
        served = lane.serve(BUDGET)
        if served in (lib.VH_S_LEFT, lib.VH_S_BROKEN, lib.VH_S_MISS):
            self.attend(served)
            return None if self.broken or lane.cdata.off else 0.0
        if served == lib.VH_S_MORE or (lane.queue.kicks_on() and lane.busy()):
            return 0.0
        return POLL_INTERVAL if self._polled else None
