# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""How a ring comes to run: from its settings to a queue and a runner, and back."""

import logging
from collections.abc import Callable
from typing import Any

from vhost._core import ffi, lib
from vhost.backend.addresses import RingAddresses, map_parts
from vhost.backend.host import Host, Runner
from vhost.backend.service import Service
from vhost.backend.settings import RingSettings, is_size, normal_base
from vhost.devices.device import Device
from vhost.errors import GuestMemoryError, UnmappedError, VhostError
from vhost.mem import GuestMemory, InflightRegion, RingAccess
from vhost.protocol import VirtioFeature
from vhost.protocol.rings import RingEvent, RingState, next_state
from vhost.virtqueue import Lane, Miss, Queue, RingLayout

__all__ = ("Life",)

log = logging.getLogger("vhost.backend")

# Plain integers: operations on flags take longer than all the rest.
_VERSION_1 = int(VirtioFeature.VERSION_1)
_PACKED = int(VirtioFeature.RING_PACKED)
_INDIRECT = int(VirtioFeature.RING_INDIRECT_DESC)
_EVENT_IDX = int(VirtioFeature.RING_EVENT_IDX)
_IN_ORDER = int(VirtioFeature.IN_ORDER)
_LOG_ALL = int(VirtioFeature.LOG_ALL)


class Life(Service):
    """A ring with its settings and its state, by which there is a queue and a runner, or not."""

    def __init__(
        self, index: int, device: Device, memory: GuestMemory, host: Host, run: Callable[[Any], Runner]
    ) -> None:
        super().__init__(index, device)
        self.state = RingState()
        #: Where its queue records what is in flight.
        self.recorded: InflightRegion | None = None
        self._memory = memory
        self._host = host
        self._run = run
        self._settings = RingSettings()
        # Guest-physical addresses, while there is a queue: its parts, and where the used ring is logged.
        self._places: list[tuple[int, int]] = []
        self._logged: int | None = None
        self._base = 0
        self._lacking = ""  # what it rests for, as was logged
        # What only a device writes, as it was when no ring was enabled any more.
        self._word: bytes | None = None
        self._runner: Runner | None = None
        # Translations of the queue's own pages were taken back: nobody touches it until they are there again.
        self._suspended = False

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

    def _missing(self) -> list[Miss]:
        iotlb, addresses = self._host.iotlb, self._settings.addresses
        if iotlb is None or addresses is None or not self._sized:
            return []
        return addresses.missing(iotlb, RingLayout(self._settings.size, self._packed))

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
