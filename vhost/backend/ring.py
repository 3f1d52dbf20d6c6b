# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One vring of one connection: what the front-end set, the queue made of it, and how it is served.

A ring belongs to one thread at a time. While a *runner* exists, it alone calls :meth:`Ring.service`; every
change from the control plane first stops the runner, which ends after the chains that are with the device,
and starts another one if the ring is to run on. So there is no lock, and no descriptor is closed while
somebody polls it.
"""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from vhost.backend.addresses import RingAddresses
from vhost.backend.notifier import Notifier
from vhost.devices.device import Device
from vhost.errors import RemoteProtocolError, VhostError, VirtqueueError
from vhost.mem import GuestMemory
from vhost.protocol import VirtioFeature
from vhost.protocol.rings import RingEvent, RingState, next_state
from vhost.virtqueue import Batch, Queue, RingLayout

__all__ = ("Ring", "Runner")

log = logging.getLogger("vhost.backend")

# Seconds between two looks at a ring whose driver never kicks.
POLL_INTERVAL = 0.001
# Chains served in one go; then the others, the event loop and the control plane have their turn.
BUDGET = 1024


class Runner(Protocol):
    """Calls ``kick.drain()`` and ``service()`` of one ring when it should; made running."""

    def stop(self) -> None:
        """Return when the ring is not touched any more."""


class _BoundedQueue(Queue):
    """A queue that hands out a limited number of chains in one go."""

    budget = 0

    def pop(self, limit: int = 64) -> Batch:
        batch = super().pop(min(limit, self.budget))
        self.budget -= len(batch)
        return batch


class Ring:
    """A vring: its settings, its state and, while it is started, its queue.

    :param run: starts a runner for a ring.
    """

    def __init__(
        self, index: int, device: Device, memory: GuestMemory, run: "Callable[[Ring], Runner]"
    ) -> None:
        self.index = index
        self.name = f"{device.name}: ring {index}"
        self.kick = Notifier(f"kick descriptor of ring {index}")
        #: Negotiated virtio features, for the next start.
        self.features = 0
        self.state = RingState()
        #: Out of order until it is set up anew, because of its driver or its device.
        self.broken = False
        self._call = Notifier(f"call descriptor of ring {index}")
        self._err = Notifier(f"err descriptor of ring {index}")
        self._device = device
        self._memory = memory
        self._run = run
        self._size = 0
        self._addresses: RingAddresses | None = None
        self._base = 0
        self._polled = False
        self._queue: _BoundedQueue | None = None
        self._runner: Runner | None = None

    # ---- what the front-end sets ----

    def set_size(self, size: int) -> None:
        """SET_VRING_NUM.

        :raises RemoteProtocolError: no power of two, or more than the device takes.
        """
        most = self._device.max_queue_size
        if not 0 < size <= most or size & (size - 1):
            raise RemoteProtocolError(f"{size} entries; a power of two from 1 to {most} is needed")
        with self.changed():
            self._size = size

    def set_addresses(self, addresses: RingAddresses) -> None:
        """SET_VRING_ADDR. They are looked up now, if there is memory and a size, and again at each start.

        :raises UnmappedError: one part is not wholly in guest memory.
        """
        if self._size and self._memory.table.regions:
            addresses.find(self._memory, RingLayout(self._size))
        with self.changed():
            self._addresses = addresses

    def set_base(self, base: int) -> None:
        """SET_VRING_BASE: the avail index to go on from.

        :raises RemoteProtocolError: more than 16 bits, which only packed rings use.
        """
        if base > 0xFFFF:
            raise RemoteProtocolError(f"base {base:#x}; the index of a split ring has 16 bits")
        with self.changed():
            self._base = base

    def set_kick(self, fd: int) -> None:
        """SET_VRING_KICK starts the ring; with `fd` -1 the driver never kicks and the ring is polled.

        :raises VhostError: the ring cannot start with its settings; it is stopped then.
        """
        self._halt()
        self.broken = False
        try:
            self.kick.set(fd)
            self._polled = fd < 0
            self.state = next_state(self.state, RingEvent.KICK_SET)
            self._open()
        except BaseException:
            self._shut()
            raise
        self._settle()

    def set_call(self, fd: int) -> None:
        """SET_VRING_CALL: how the driver is told of used chains; -1 when it polls."""
        self._rest()
        try:
            self._call.set(fd)
            if self._queue is not None:
                self._queue.call_fd = fd
                self._call.signal()  # what was used before went unheard, if there was no descriptor yet
        finally:
            self._settle()

    def set_err(self, fd: int) -> None:
        """SET_VRING_ERR: how the front-end is told that the ring is broken; -1 for not at all."""
        self._rest()
        try:
            self._err.set(fd)
        finally:
            self._settle()

    def apply(self, event: RingEvent) -> None:
        """Enable, disable or reset: whatever changes the state and nothing else."""
        self._rest()
        self.state = next_state(self.state, event)
        if not self.state.started:
            self._halt()
        self._settle()

    def stop(self) -> int:
        """GET_VRING_BASE: finish what is with the device, stop, and say where to go on."""
        self._halt()
        self._shut()
        return self._base

    @contextmanager
    def changed(self) -> Iterator[None]:
        """Settings or guest memory change inside; a started ring then goes on with them, or breaks."""
        self._halt()
        try:
            yield
        finally:
            if self.state.started and not self.broken:
                try:
                    self._open()
                except Exception as error:
                    self._break(str(error), trace=not isinstance(error, (VhostError, OSError)))
            self._settle()

    def close(self) -> None:
        """The connection is over."""
        self.stop()
        self._call.close()
        self._err.close()

    # ---- what the runner calls ----

    def kicked(self) -> None:
        """Take the kick; a descriptor that will never bring one again breaks the ring."""
        if reason := self.kick.drain():
            self._break(f"its kick descriptor has failed: {reason}")

    def service(self) -> float | None:
        """Look at the ring and serve what is there, up to a limit.

        :returns: seconds after which to call again, 0 for at once; None: when it is kicked.
        """
        queue = self._queue
        if queue is None or self.broken:
            return None
        try:
            return self._serve(queue)
        except VirtqueueError as error:
            self._break(str(error))
        except Exception as error:
            self._break(f"the device failed: {error!r}", trace=True)
        return None

    def _serve(self, queue: _BoundedQueue) -> float | None:
        queue.budget = BUDGET
        popped, waiting = queue.popped, queue.available()
        queue.kicks_off()
        delay = self._device.handle(queue)
        more = queue.kicks_on()
        # Chains that were there and that the device did not take are its own choice: it would spin otherwise.
        if delay is None and more and (queue.popped != popped or not waiting):
            return 0.0
        if self._polled:
            delay = POLL_INTERVAL if delay is None else min(delay, POLL_INTERVAL)
        return None if delay is None else max(delay, 0.0)

    def _break(self, reason: str, *, trace: bool = False) -> None:
        self.broken = True
        # Text only: who keeps a record with an exception keeps its frames, and through them guest memory.
        where = f"\n{traceback.format_exc()}" if trace else ""
        log.error("%s is broken until it is set up anew: %s%s", self.name, reason, where)
        self._err.signal()

    # ---- from settings to a running queue and back ----

    def _open(self) -> None:
        if not self._size or self._addresses is None:
            missing = "SET_VRING_ADDR" if self._size else "SET_VRING_NUM"
            raise RemoteProtocolError(f"the ring cannot start without {missing}")
        layout = RingLayout(self._size)
        queue = _BoundedQueue(
            self.index,
            layout,
            self._memory,
            self._addresses.map(self._memory, layout),
            base=self._base,
            event_idx=bool(self.features & VirtioFeature.RING_EVENT_IDX),
            indirect=bool(self.features & VirtioFeature.RING_INDIRECT_DESC),
            max_chain=self._device.max_chain,
            call_fd=self._call.fd,
        )
        try:
            self._device.start(queue)
        except BaseException:
            queue.close()
            raise
        self._queue = queue
        log.info("%s started: %d entries, base %d", self.name, self._size, self._base)

    def _settle(self) -> None:
        if self._runner is None and self._queue is not None and self.state.enabled and not self.broken:
            self._runner = self._run(self)

    def _rest(self) -> None:
        if self._runner is not None and self._queue is not None:
            self._queue.pausing = True
            self._runner.stop()
            self._runner = None
            self._queue.pausing = False

    def _halt(self) -> None:
        self._rest()
        queue, self._queue = self._queue, None
        if queue is None:
            return
        queue.pausing = True
        try:
            self._device.stop(self.index)
        except Exception:
            log.exception("%s: the device failed to stop it", self.name)
        self._base = queue.base
        queue.close()
        if held := queue.popped - queue.pushed - queue.lost:
            log.error("%s: the device has not returned %d of %d chains", self.name, held, queue.popped)
        log.info("%s stopped: base %d, %d chains served", self.name, self._base, queue.pushed)

    def _shut(self) -> None:
        self.state = next_state(self.state, RingEvent.GET_BASE)
        self.broken = False
        self.kick.close()
