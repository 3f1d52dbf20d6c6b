# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One vring of one connection: what the front-end set, the queue made of it, and how it is served.

A ring belongs to one thread at a time. While a *runner* exists, it alone calls :meth:`Ring.service`; every
change from the control plane first stops the runner, which ends after the chains that are with the device,
and starts another one if the ring is to run on. So there is no lock, and no descriptor is closed while
somebody polls it.
"""

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from vhost._core import lib
from vhost.backend.addresses import RingAddresses, map_parts
from vhost.backend.notifier import Notifier
from vhost.devices.device import Device
from vhost.errors import RemoteProtocolError, VhostError, VirtqueueError
from vhost.mem import DirtyLog, GuestMemory, InflightRegion, Iotlb
from vhost.protocol import PackedBase, Quirks, VirtioFeature
from vhost.protocol.rings import RingEvent, RingState, next_state
from vhost.virtqueue import Lane, Miss, Queue, RingLayout

__all__ = ("Host", "Ring", "Runner")

log = logging.getLogger("vhost.backend")

# Plain integers: operations on flags take longer than all the rest.
_VERSION_1 = int(VirtioFeature.VERSION_1)
_PACKED = int(VirtioFeature.RING_PACKED)
_INDIRECT = int(VirtioFeature.RING_INDIRECT_DESC)
_EVENT_IDX = int(VirtioFeature.RING_EVENT_IDX)
_IN_ORDER = int(VirtioFeature.IN_ORDER)
_LOG_ALL = int(VirtioFeature.LOG_ALL)

# Seconds between two looks at a ring whose driver never kicks.
POLL_INTERVAL = 0.001
# Chains served in one go; then the others, the event loop and the control plane have their turn.
BUDGET = 1024


class Runner(Protocol):
    """Calls :meth:`Ring.attend` or :meth:`Ring.service` of one ring when it should; made running."""

    def stop(self) -> None:
        """Return when the ring is not touched any more."""

    def nudge(self) -> None:
        """Have a look at the ring again, from any thread."""


class Host(Protocol):
    """What a ring needs of its connection besides guest memory."""

    features: int
    quirks: Quirks
    iotlb: Iotlb | None
    log: DirtyLog | None
    inflight: InflightRegion | None

    def translate(self, miss: Miss) -> None:
        """Ask for a translation; :meth:`Ring.translated` is called when there are new ones. From any
        thread."""


class Ring:
    """A vring: its settings, its state and, while it is started, its queue.

    :param host: what is negotiated, and what the rings of a connection share.
    :param run: starts a runner for a ring.
    """

    def __init__(
        self, index: int, device: Device, memory: GuestMemory, host: Host, run: "Callable[[Ring], Runner]"
    ) -> None:
        self.index = index
        self.name = f"{device.name}: ring {index}"
        self.kick = Notifier(f"kick descriptor of ring {index}")
        self.state = RingState()
        #: Out of order until it is set up anew, because of its driver or its device.
        self.broken = False
        #: What a runner runs; there is one while the ring is started and its memory is found.
        self.lane: Lane | None = None
        #: Where its queue records what is in flight.
        self.recorded: InflightRegion | None = None
        self._call = Notifier(f"call descriptor of ring {index}")
        self._err = Notifier(f"err descriptor of ring {index}")
        self._device = device
        self._memory = memory
        self._host = host
        self._run = run
        self._size = 0
        self._addresses: RingAddresses | None = None
        self._descriptors = 0  # their guest-physical address while there is a queue
        self._base = 0
        self._big_endian = False
        self._polled = False
        self._runner: Runner | None = None

    # ---- what the front-end sets ----

    def set_size(self, size: int) -> None:
        """SET_VRING_NUM.

        :raises RemoteProtocolError: more than the device takes, or, for a split ring, no power of two.
        """
        most, packed = self._device.max_queue_size, self._packed
        if not 0 < size <= most or (size & (size - 1) and not packed):
            kind = "1" if packed else "a power of two from 1"
            raise RemoteProtocolError(f"{size} entries; {kind} to {most} is needed")
        self._halt()
        self._size = size
        self._reopen()

    def set_addresses(self, addresses: RingAddresses) -> None:
        """SET_VRING_ADDR. They are looked up now, if there is memory and a size, and again at each start.

        :raises RemoteProtocolError: they are not aligned.
        :raises UnmappedError: one part is not wholly in guest memory.
        """
        addresses.check(RingLayout(1, self._packed))
        if self._fits and len(self._memory.table) and self._host.iotlb is None:
            addresses.find(self._memory, RingLayout(self._size, self._packed))
        queue = self._queue
        if queue is not None and self._addresses is not None and addresses.same_place(self._addresses):
            # Only the log is switched on or off.
            self._rest()
            self._addresses = addresses
            self._log(queue)
            self._settle()
            return
        self._halt()
        self._addresses = addresses
        self._reopen()

    def set_base(self, base: int) -> None:
        """SET_VRING_BASE: where to go on.

        :raises RemoteProtocolError: more than 16 bits, which only packed rings use, or outside the ring.
        """
        if self._packed:
            place = PackedBase.of(base, self._host.quirks)
            if self._size and max(place.avail, place.used) >= self._size:
                raise RemoteProtocolError(f"base {base:#x} is outside a ring of {self._size} entries")
            base = place.base()
        elif base > 0xFFFF:
            raise RemoteProtocolError(f"base {base:#x}; the index of a split ring has 16 bits")
        self._halt()
        self._base = base
        self._reopen()

    def set_endian(self, big: bool) -> None:
        """SET_VRING_ENDIAN: the byte order of a legacy driver's ring."""
        self._halt()
        self._big_endian = big
        self._reopen()

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
            self._reopen()

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
            if self._queue is not None:
                self._queue.refresh()
                self._log(self._queue)
            self._settle()

    def without(self, iova: int, size: int) -> AbstractContextManager[None]:
        """Translations of these addresses go inside, where no chain that was popped with them is in use."""
        self._rest()
        queue = self._queue
        holds = self.lane is not None and not self.lane.native and queue is not None and queue.held
        return self.changed() if holds or self._uses(iova, size) else self.paused()

    def close(self) -> None:
        """The connection is over."""
        self.stop()
        self._call.close()
        self._err.close()

    # ---- while it runs ----

    def refresh(self) -> None:
        """There is more guest memory than before. What Python pops is popped with it anyway."""
        if self.lane is not None and self.lane.native:
            self.lane.queue.refresh()

    def translated(self) -> None:
        """There are new translations, perhaps those that the ring waits for."""
        if self.lane is not None:
            self.refresh()
            if self._runner is not None:
                # What the device did not take for want of a translation it has not declined.
                self.lane.cdata.look = 1
                self.lane.cdata.off = self.broken
                self._runner.nudge()
        elif self.state.started and not self.broken:
            self._reopen()

    def _uses(self, iova: int, size: int) -> bool:
        # Whether the ring itself has one of these I/O addresses.
        if self._addresses is None or not self._fits:
            return False
        parts = self._addresses.parts(RingLayout(self._size, self._packed))
        return any(address < iova + size and iova < address + length for _, address, length in parts)

    def let_go(self) -> None:
        """The runner does not stop: it may wait for a descriptor of the driver, who has made it block."""
        self._call.drain()
        self.kick.signal()

    # ---- what the runner calls ----

    def kicked(self) -> None:
        """Take the kick; a descriptor that will never bring one again breaks the ring."""
        if reason := self.kick.drain():
            self.fail(f"its kick descriptor has failed: {reason}")

    def service(self) -> float | None:
        """Look at the ring and serve what is there, up to a limit.

        :returns: seconds after which to call again, 0 for at once; None: when it is kicked.
        """
        lane = self.lane
        if lane is None or self.broken or lane.cdata.off:
            return None
        try:
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
                self._ask(queue)
        except VirtqueueError as error:
            self.fail(str(error))
        except Exception as error:
            self.fail(f"the device failed: {error!r}", trace=True)

    def attend(self, served: int) -> None:
        """The data path needs Python: `served` says what for (``enum vh_served``)."""
        lane = self.lane
        assert lane is not None
        try:
            if served == lib.VH_S_LEFT:
                lane.finish(self._device.process)
                lane.cdata.look = 1
            else:
                lane.queue.check(-lib.VH_E_MISS if served == lib.VH_S_MISS else -1)
            if lane.queue.miss is not None:
                self._ask(lane.queue)
        except VirtqueueError as error:
            self.fail(str(error))
        except Exception as error:
            self.fail(f"the device failed: {error!r}", trace=True)

    def fail(self, reason: str, *, trace: bool = False) -> None:
        """The ring is broken: say so, and serve it no more."""
        self.broken = True
        if self.lane is not None:
            self.lane.cdata.off = 1
        # Text only: who keeps a record with an exception keeps its frames, and through them guest memory.
        where = f"\n{traceback.format_exc()}" if trace else ""
        log.error("%s is broken until it is set up anew: %s%s", self.name, reason, where)
        self._err.signal()

    def _serve(self, queue: Queue) -> float | None:
        queue.budget = BUDGET
        popped, waiting, offered = queue.popped, queue.available(), queue.offered
        queue.kicks_off()
        delay = self._device.handle(queue)
        if queue.miss is not None:
            self._ask(queue)
            return None
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

    def _ask(self, queue: Queue) -> None:
        # The answer may be there before this returns.
        miss, queue.miss = queue.miss, None
        assert miss is not None
        assert self.lane is not None
        self.lane.cdata.off = 1
        self._host.translate(miss)

    # ---- from settings to a running queue and back ----

    @property
    def _queue(self) -> Queue | None:
        return None if self.lane is None else self.lane.queue

    @property
    def _packed(self) -> bool:
        return bool(self._host.features & _PACKED)

    @property
    def _fits(self) -> bool:
        # Whether there is a size, and the kind of ring that is negotiated now can have it.
        return self._size > 0 and (self._packed or not self._size & (self._size - 1))

    def _open(self) -> None:
        if not self._size or self._addresses is None:
            missing = "SET_VRING_ADDR" if self._size else "SET_VRING_NUM"
            raise RemoteProtocolError(f"the ring cannot start without {missing}")
        if not self._fits or (self._base > 0xFFFF and not self._packed):
            # Set before SET_FEATURES made another kind of ring of it.
            raise RemoteProtocolError(
                f"{self._size} entries and base {self._base:#x} are a packed ring's; a split one has a power "
                f"of two of entries and a base of 16 bits"
            )
        layout, host = RingLayout(self._size, self._packed), self._host
        if host.iotlb is not None and (miss := self._addresses.missing(host.iotlb, layout)):
            log.info("%s waits for the translation of %#x", self.name, miss.address)
            host.translate(miss)
            return
        features, record, inflight = host.features, self._record(), 0
        if record is not None:
            inflight = record.part(self.index, self._size, packed=layout.packed)
        places = self._addresses.find(self._memory, layout, host.iotlb)
        self._descriptors = places[0][0]
        queue = Queue(
            self.index,
            layout,
            self._memory,
            map_parts(self._memory, layout, places),
            base=self._base,
            event_idx=bool(features & _EVENT_IDX),
            indirect=bool(features & _INDIRECT),
            in_order=bool(features & _IN_ORDER),
            big_endian=self._big_endian and not features & _VERSION_1,
            max_chain=self._device.max_chain,
            call_fd=self._call.fd,
            translation=host.iotlb,
            inflight=inflight,
        )
        try:
            self._log(queue)
            self._device.start(queue)
            path = self._device.path(queue)
        except BaseException:
            queue.close()
            raise
        self.lane = Lane(queue, path, self.kick.fd)
        self.recorded = record
        log.info("%s started: %d entries, base %#x", self.name, self._size, queue.base)
        if queue.again:
            log.info("%s: %d chains were in flight, and are served again", self.name, queue.again)

    def _record(self) -> InflightRegion | None:
        region = self._host.inflight
        if region is None or region.holds(self.index, self._size):
            return region
        log.warning(
            "%s: its %d entries have no place in the %s: what is in flight is lost if this process is killed",
            self.name,
            self._size,
            region.spec,
        )
        return None

    def _log(self, queue: Queue) -> None:
        host, addresses = self._host, self._addresses
        assert addresses is not None
        if host.log is None or not host.features & _LOG_ALL:
            queue.log_to(None)
            return
        ring = self._descriptors if queue.packed else 0
        queue.log_to(host.log, data=True, used=addresses.log, ring=ring)

    def _reopen(self) -> None:
        if self.state.started and not self.broken:
            try:
                self._open()
            except Exception as error:
                self.fail(str(error), trace=not isinstance(error, (VhostError, OSError)))
        self._settle()

    def _settle(self) -> None:
        if self._runner is not None or self.lane is None or self.broken:
            return
        enabled = self.state.enabled
        self._device.set_enabled(self.index, enabled)
        if enabled or self._device.serves_disabled:
            self.lane.cdata.off = 0
            self.lane.cdata.look = 1
            self._runner = self._run(self)

    def _rest(self) -> None:
        if self._runner is not None and self._queue is not None:
            self._queue.pausing = True
            self._runner.stop()
            self._runner = None
            self._queue.pausing = False

    def _halt(self) -> None:
        self._rest()
        lane, self.lane = self.lane, None
        if lane is None:
            return
        queue = lane.queue
        lane.drain()
        queue.pausing = True
        try:
            self._device.stop(self.index)
        except Exception:
            log.exception("%s: the device failed to stop it", self.name)
        self._base = queue.base
        queue.close()
        self.recorded = None
        if queue.held:
            log.error("%s: the device has not returned %d of %d chains", self.name, queue.held, queue.popped)
        log.info("%s stopped: base %#x, %d chains served", self.name, self._base, queue.pushed)

    def _shut(self) -> None:
        self.state = next_state(self.state, RingEvent.GET_BASE)
        self.broken = False
        self.kick.close()
