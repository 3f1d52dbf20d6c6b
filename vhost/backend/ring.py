# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One vring of one connection: what the front-end set, the queue made of it, and how it is served.

A ring belongs to one thread at a time. While a *runner* exists, it alone calls :meth:`Ring.service`; every
change from the control plane first stops the runner, which ends after the chains that are with the device,
and starts another one if the ring is to run on. So there is no lock, and no descriptor is closed while
somebody polls it.
"""

import logging
from dataclasses import replace

from vhost.backend.addresses import RingAddresses
from vhost.backend.settings import RingSettings, check_size, normal_base
from vhost.backend.waiting import Waiting
from vhost.protocol.rings import RingEvent, next_state
from vhost.virtqueue import RingLayout

__all__ = ("Ring",)

log = logging.getLogger("vhost.backend")


class Ring(Waiting):
    """A vring: what the messages of the front-end do to it.

    :param host: what is negotiated, and what the rings of a connection share.
    :param run: starts a runner for a ring.
    """

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
            if self.state.started:
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

    # ---- what changes its state, or what is around it ----

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
                self.translated()
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

    def close(self) -> None:
        """The connection is over."""
        self.stop()
        self._call.close()
        self._err.close()
