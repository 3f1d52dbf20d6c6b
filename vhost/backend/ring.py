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
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from vhost._core import ffi, lib
from vhost.backend.addresses import RingAddresses, map_parts
from vhost.backend.notifier import Notifier
from vhost.backend.settings import RingSettings, check_size, is_size, normal_base
from vhost.backend.translations import Translations
from vhost.devices.device import Device
from vhost.errors import GuestMemoryError, UnmappedError, VhostError, VirtqueueError
from vhost.mem import DirtyLog, GuestMemory, InflightRegion, Iotlb, RingAccess
from vhost.protocol import Quirks, VirtioFeature
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
    """Calls :meth:`Ring.attend` or :meth:`Ring.service` of one ring when it should, and :meth:`Ring.heard`
    when one that waits is kicked; made running."""

    def stop(self) -> None:
        """Return when the ring is not touched any more."""

    def nudge(self) -> None:
        """Have a look at the ring again, from any thread."""


class Host(Protocol):
    """What a ring needs of its connection besides guest memory."""

    features: int
    quirks: Quirks
    log: DirtyLog | None
    inflight: InflightRegion | None
    translations: Translations
    #: The rings that are enabled. While there is none, nothing of any ring is touched.
    enabled: set[int]

    @property
    def iotlb(self) -> Iotlb | None: ...


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
        #: What a runner runs; there is one while the ring is to be served and its memory is found.
        self.lane: Lane | None = None
        #: Where its queue records what is in flight.
        self.recorded: InflightRegion | None = None
        self._call = Notifier(f"call descriptor of ring {index}")
        self._err = Notifier(f"err descriptor of ring {index}")
        self._device = device
        self._memory = memory
        self._host = host
        self._run = run
        self._settings = RingSettings()
        # Guest-physical addresses, while there is a queue: its parts, and where the used ring is logged.
        self._places: list[tuple[int, int]] = []
        self._logged: int | None = None
        self._base = 0
        self._polled = False
        self._lacking = ""  # what it rests for, as was logged
        # What only a device writes, as it was when no ring was enabled any more.
        self._word: bytes | None = None
        self._runner: Runner | None = None
        # Translations of the queue's own pages were taken back: nobody touches it until they are there again.
        self._suspended = False
        # In place of a queue that waits for its pages: a lane that only listens.
        self._ear: Any = None

    # ---- what the front-end sets ----

    def set_size(self, size: int) -> None:
        """SET_VRING_NUM.

        :raises RemoteProtocolError: more than the device takes, or, for a split ring, no power of two.
        """
        check_size(size, self._device.max_queue_size, packed=self._packed)
        self._set(replace(self._settings, size=size), "SET_VRING_NUM")

    def set_addresses(self, addresses: RingAddresses) -> None:
        """SET_VRING_ADDR. They are looked up now, if there is memory and a size, and again at each start.

        :raises RemoteProtocolError: they are not aligned.
        :raises UnmappedError: one part is not wholly in guest memory.
        """
        addresses.check(RingLayout(1, self._packed))
        if self._sized and len(self._memory.table) and self._host.iotlb is None:
            addresses.find(self._memory, RingLayout(self._settings.size, self._packed))
        before, settings = self._settings.addresses, replace(self._settings, addresses=addresses)
        if before is None or not self.state.started or not addresses.same_place(before):
            self._set(settings, "SET_VRING_ADDR")
        elif settings != self._settings:
            self._log_to(settings)

    def _log_to(self, settings: RingSettings) -> None:
        # Only the log is switched on or off.
        queue, addresses = self._queue, settings.addresses
        assert addresses is not None
        if queue is not None and self._served and (found := self._log_place(addresses)) is not None:
            self._rest()
            self._settings, (self._logged,) = settings, found
            self._log(queue)
            self._settle()
            return
        self._halt(leave=True)
        self._settings = settings
        self._resume()

    def set_base(self, base: int) -> None:
        """SET_VRING_BASE: where to go on.

        :raises RemoteProtocolError: more than 16 bits, which only packed rings use.
        """
        base = normal_base(base, self._host.quirks, packed=self._packed)
        self._set_anew("SET_VRING_BASE")
        self._base = base

    def set_endian(self, big: bool) -> None:
        """SET_VRING_ENDIAN: the byte order of a legacy driver's ring."""
        self._set(replace(self._settings, big_endian=big), "SET_VRING_ENDIAN")

    def _set(self, settings: RingSettings, by: str) -> None:
        if settings != self._settings:
            self._set_anew(by)
            self._settings = settings

    def _set_anew(self, by: str) -> None:
        # What is there of the settings may not go together before the last of them has come.
        if self.state.started:
            self._halt()
            self._shut(RingEvent.SET_ANEW)
            log.info("%s: %s came while it was started; it waits for SET_VRING_KICK", self.name, by)

    def set_kick(self, fd: int) -> None:
        """SET_VRING_KICK starts the ring; with `fd` -1 the driver never kicks and the ring is polled.

        :raises VhostError: the ring cannot start with its settings; it is stopped then.
        """
        self._halt()
        self.broken, self._word = False, None
        try:
            self.kick.set(fd)
            self._polled = fd < 0
            self.state = next_state(self.state, RingEvent.KICK_SET)
            self._open()
        except BaseException:
            self._shut(RingEvent.GET_BASE)
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
        """Enable, disable or reset: whatever changes the state and nothing else.

        The first ring that is enabled and the last one that is disabled matter to the others, too: see
        :meth:`settle`.
        """
        state = next_state(self.state, event)
        if state == self.state:
            return
        self.state = state
        if state.enabled:
            self._host.enabled.add(self.index)
            self._word = None
        else:
            self._host.enabled.discard(self.index)
        self.settle()

    def settle(self) -> None:
        """Serve the ring, or do not, as its state says and, where disabled rings are served, that of the
        others. Nothing of a ring that is not served is in flight, or touched, when this returns."""
        if not self.state.started:
            self._halt()
        elif self._wanted:
            self._rest()
            if self.lane is not None:
                self._put_back(self.lane)
                self.lane.drain()
            self._resume()
            if self._suspended and self.state.enabled:
                self._host.translations.ask(self, self._missing())
        elif self._runner is not None or not self._host.enabled:
            self._rest()
            if self._served and not self._host.enabled and self._queue is not None:
                self._word = self._queue.word
            self._halt(leave=True)

    def stop(self) -> int:
        """GET_VRING_BASE: finish what is with the device, stop, and say where to go on."""
        self._halt()
        self._shut(RingEvent.GET_BASE)
        return self._base

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
                self._host.translations.ask(self, self._missing())

    def close(self) -> None:
        """The connection is over."""
        self.stop()
        self._call.close()
        self._err.close()

    # ---- while it runs ----

    def refresh(self) -> None:
        """There is more guest memory than before, perhaps what the ring rests for. What Python pops is popped
        with it anyway."""
        if self._served:
            if self.lane is not None and self.lane.native:
                self.lane.queue.refresh()
        elif self._host.iotlb is None:
            self._resume()

    def translated(self) -> None:
        """The translations that the ring waits for are there; in the control plane's thread."""
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

    # ---- what the runner calls ----

    def kicked(self) -> None:
        """Take the kick; a descriptor that will never bring one again breaks the ring."""
        if reason := self.kick.drain():
            self.fail(f"its kick descriptor has failed: {reason}")
        elif self.listening:
            self.heard()

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

    # ---- waiting for translations ----

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
        busy = (lane.queue.kicks_on() or waited or self._polled) and self.state.enabled
        self._suspended = True
        lane.cdata.off = lib.VH_LISTEN
        self._host.translations.leave(self)
        return busy

    def _missing(self) -> list[Miss]:
        iotlb, addresses = self._host.iotlb, self._settings.addresses
        if iotlb is None or addresses is None or not self._sized:
            return []
        return addresses.missing(iotlb, RingLayout(self._settings.size, self._packed))

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

    # ---- from settings to a running queue and back ----

    @property
    def _queue(self) -> Queue | None:
        return None if self.lane is None else self.lane.queue

    @property
    def _packed(self) -> bool:
        return bool(self._host.features & _PACKED)

    @property
    def _sized(self) -> bool:
        # Whether there is a size, and the kind of ring that is negotiated now can have it.
        return is_size(self._settings.size, packed=self._packed)

    @property
    def _wanted(self) -> bool:
        # Whether the ring, if it is started, is to be served.
        return self.state.enabled or (self._device.serves_disabled and bool(self._host.enabled))

    @property
    def _served(self) -> bool:
        # Whether there is a queue, and a ring in memory under it.
        return self._queue is not None and not self._queue.away

    @property
    def _held(self) -> bool:
        # Whether a device in Python has chains that it will return some time.
        return self.lane is not None and not self.lane.native and self.lane.queue.held > 0

    def _open(self) -> None:
        parts = self._map()
        if parts is None:
            return
        host, features = self._host, self._host.features
        size, record, inflight = self._settings.size, self._record(), 0
        if record is not None:
            inflight = record.part(self.index, size, packed=self._packed)
        queue = Queue(
            self.index,
            RingLayout(size, self._packed),
            self._memory,
            parts,
            base=normal_base(self._base, host.quirks, packed=self._packed),
            event_idx=bool(features & _EVENT_IDX),
            indirect=bool(features & _INDIRECT),
            in_order=bool(features & _IN_ORDER),
            big_endian=self._settings.big_endian and not features & _VERSION_1,
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
        log.info("%s started: %d entries, base %#x", self.name, size, queue.base)
        if queue.again:
            log.info("%s: %d chains were in flight, and are served again", self.name, queue.again)

    def _map(self) -> tuple[RingAccess, RingAccess, RingAccess] | None:
        # The parts of the ring; None: not now, and not without another message.
        host, (layout, addresses) = self._host, self._settings.layout(packed=self._packed)
        if (lacking := self._missing()) and host.translations.ask(self, lacking):
            log.info("%s waits for the translation of %#x", self.name, lacking[0].address)
            if not self._polled:
                self._ear = ffi.new("struct vh_lane *", {"kick_fd": self.kick.fd, "off": lib.VH_LISTEN})
                self._ear.kick_checked = not lib.vh_is_counter(self.kick.fd)
            return None
        places = addresses.find(self._memory, layout, host.iotlb)
        logged = addresses.logged(layout, host.iotlb)
        parts = map_parts(self._memory, layout, places)
        if self._word is not None and parts[2].view[: len(self._word)] != self._word:
            # Only another ring was enabled, and where this one was there is something else now.
            for part in parts:
                part.close()
            return None
        self._places, self._logged = places, logged
        return parts

    def _record(self) -> InflightRegion | None:
        region, size = self._host.inflight, self._settings.size
        if region is None or region.holds(self.index, size):
            return region
        log.warning(
            "%s: its %d entries have no place in the %s: what is in flight is lost if this process is killed",
            self.name,
            size,
            region.spec,
        )
        return None

    def _log(self, queue: Queue) -> None:
        host = self._host
        if host.log is None or not host.features & _LOG_ALL:
            queue.log_to(None)
            return
        ring = self._places[0][0] if queue.packed else 0
        queue.log_to(host.log, data=True, used=self._logged, ring=ring)

    def _log_place(self, addresses: RingAddresses) -> tuple[int | None] | None:
        # Where the used ring is logged now; None: that is not known yet.
        if addresses.log == addresses.used and self._host.iotlb is not None:
            return (self._places[2][0],)
        layout = RingLayout(self._settings.size, self._packed)
        try:
            return (addresses.logged(layout, self._host.iotlb),)
        except GuestMemoryError:
            return None

    def _resume(self) -> None:
        # Go on, if the ring is to be served and its memory is there.
        if self.state.started and not self.broken and self._wanted and not self._served:
            try:
                self._bring_back()
                self._lacking = ""
            except Exception as error:
                if isinstance(error, UnmappedError) and self._host.iotlb is None:
                    self._wait(str(error))
                else:
                    self.fail(str(error), trace=not isinstance(error, (VhostError, OSError)))
        self._settle()

    def _bring_back(self) -> None:
        queue = self._queue
        if queue is None:
            self._open()
        elif (parts := self._map()) is not None:
            self._log(queue)
            queue.come_back(parts)
            self._device.start(queue)
            log.info("%s goes on, and the device holds %d chains", self.name, queue.held)

    def _wait(self, lacking: str) -> None:
        if lacking != self._lacking:
            log.info("%s rests until its memory is there: %s", self.name, lacking)
        self._lacking = lacking

    def _settle(self) -> None:
        queue = self._queue
        if self._runner is not None or self.cdata is None or self.broken or not self._wanted:
            return
        if queue is not None:
            if queue.away:
                return
            self._device.set_enabled(self.index, self.state.enabled)
        if not self.listening:
            self.cdata.off = lib.VH_ON
            self.cdata.look = 1
        self._runner = self._run(self)

    def _rest(self) -> None:
        if self._runner is not None:
            if self._queue is not None:
                self._queue.pausing = True
            self._runner.stop()
            self._runner = None
            if self._queue is not None:
                self._queue.pausing = False

    def _put_back(self, lane: Lane) -> None:
        # What takes long does not hold up a ring that is to rest.
        try:
            lane.put_back()
        except Exception:
            log.exception("%s: the device failed to give up a request", self.name)

    def _halt(self, *, leave: bool = False) -> None:
        # `leave`: keep the queue for as long as the device has chains of it.
        self._rest()
        self._host.translations.leave(self)
        self._suspended, self._ear = False, None
        lane = self.lane
        if lane is None:
            return
        queue = lane.queue
        if not queue.away:
            self._put_back(lane)
            lane.drain()
            queue.pausing = True
            try:
                self._device.stop(self.index)
            except Exception:
                log.exception("%s: the device failed to stop it", self.name)
            queue.pausing = False
        if leave and self._held and not self.broken:
            if not queue.away:
                queue.leave()
                log.info("%s is left while the device holds %d chains", self.name, queue.held)
            return
        self.lane = self.recorded = None
        self._base = queue.base
        queue.close()
        if queue.held:
            log.error("%s: the device has not returned %d of %d chains", self.name, queue.held, queue.popped)
        log.info("%s stopped: base %#x, %d chains served", self.name, self._base, queue.pushed)

    def _shut(self, event: RingEvent) -> None:
        self.state = next_state(self.state, event)
        self.broken = False
        self.kick.close()
