# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One connection of a front-end: what each request does to the device, its rings and the guest's memory.

Bytes and descriptors go in, the bytes and descriptors of the answers come out. Knows no socket, no thread and
no event loop: how rings are run is a parameter.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

from vhost.backend.addresses import RingAddresses
from vhost.backend.host import Runner
from vhost.backend.offer import (
    Offer,
    check_xen,
    offered_only,
    offered_protocol_features,
    standing_answers,
)
from vhost.backend.ring import Ring
from vhost.backend.shared import Shared
from vhost.backend.translations import Translations
from vhost.devices.device import Device
from vhost.errors import ProtocolError, VhostError
from vhost.io.sockets import close_fds
from vhost.io.stream import Standing
from vhost.mem import GuestMemory, InflightRegion, InflightSpec, RegionSpec
from vhost.protocol import (
    U64,
    Channel,
    Closed,
    ConfigReply,
    Connection,
    Inflight,
    IotlbPerm,
    IotlbType,
    LogBase,
    Message,
    Payload,
    Quirks,
    RegionRepeats,
    Rejected,
    Request,
    Side,
    VirtioFeature,
    VringBase,
    VringFlag,
)
from vhost.protocol import frontend_messages as fe
from vhost.protocol.rings import RingEvent

__all__ = ("MakeMemory", "Session")

log = logging.getLogger("vhost.backend")

_PROTOCOL_FEATURES = int(VirtioFeature.PROTOCOL_FEATURES)

_LOG_ALL = int(VirtioFeature.LOG_ALL)
_LOGGED = int(VringFlag.LOG)
# The flag of SET_CONFIG (vhost-user, "Virtio device config space").
_MIGRATION = 1

#: Makes the guest memory of a connection.
MakeMemory = Callable[[], GuestMemory]

#: What goes to the socket: bytes, and the descriptors that ride on the first of them.
Output = tuple[bytes, list[int]]


_HANDLERS: dict[type[Message], Callable[["Session", Any, Request], Payload | None]] = {}
_M = TypeVar("_M", bound=Message)
_Method = Callable[["Session", _M, Request], Payload | None]


def _handles(kind: type[_M]) -> Callable[[_Method[_M]], _Method[_M]]:
    """Enter a method as the one that serves `kind`; it returns the answer where one is always due."""

    def enter(method: _Method[_M]) -> _Method[_M]:
        _HANDLERS[kind] = method
        return method

    return enter


class Session:
    """The state of one connection.

    :param device: outlives the session.
    :param run: makes the runner of a ring: a thread, or callbacks of an event loop.
    :param memory: guest memory without regions yet.
    :param offer: the features to offer, None: the default for the device.
    :param quirks: how far to go along with the front-end, None: as with one that is not known.
    """

    def __init__(
        self,
        device: Device,
        run: Callable[[Ring], Runner],
        memory: GuestMemory,
        offer: Offer | None = None,
        quirks: Quirks | None = None,
    ) -> None:
        self.device = device
        self.memory = memory
        self._offer = offer or Offer.of(device)
        self._connection = Connection(Channel.FRONTEND, Side.RESPONDER, quirks=quirks)
        self._shared = Shared(memory, self._connection.terms.quirks)
        self._repeats = RegionRepeats(self._connection.terms.quirks, memory.max_regions)
        self.rings = [Ring(index, device, memory, self._shared, run) for index in range(device.num_queues)]
        #: The front-end has gone, between two messages.
        self.over = False
        #: The front-end has begun to use the device.
        self.begun = False
        self._connection.offered_features = self._offer.virtio
        self._connection.offered_protocol_features = self._offer.protocol
        # Descriptors that go with the answer to the request that is served now, and are closed behind it.
        self._answer_fds: list[int] = []
        self._standing: Standing | None = None
        self._stand()

    def feed(self, data: bytes, fds: Sequence[int]) -> Iterator[Output]:
        """Take what one read brought, act, and say what to send, one answer after the other.

        :raises RemoteProtocolError: the stream is out of step; the connection is of no more use.
        """
        self._connection.receive(data, fds)
        while (event := self._connection.next_event()) is not None:
            if isinstance(event, Request):
                if (output := self._serve(event)) is not None:
                    try:
                        yield output
                    finally:
                        close_fds(output[1])
            elif isinstance(event, Closed):
                self.over = True
            elif isinstance(event, Rejected):
                reason = str(event.error)
                name = "" if event.name in reason else f"{event.name}: "
                log.warning("%s: refused: %s%s", self.device.name, name, reason)
                if (output := self._connection.ack(event, 1)) is not None:
                    yield output

    @property
    def channel(self) -> Translations:
        """Says by its descriptor when it has something to do besides requests."""
        return self._shared.translations

    @property
    def standing(self) -> Standing | None:
        """Answers that may be given to what comes next without :meth:`feed`, None: to nothing now."""
        return self._standing if self._connection.idle else None

    def _stand(self) -> None:
        connection, memory = self._connection, self.memory
        if log.isEnabledFor(logging.DEBUG):
            return  # then every request is logged
        self._standing = standing_answers(
            *self._offer,
            connection.protocol_features,
            len(self.rings),
            memory.max_regions,
        )

    def close(self) -> None:
        """Stop the rings, give back memory and descriptors, and put the device into its first state."""
        with ExitStack() as stack:
            stack.callback(self._connection.close)
            stack.callback(self._disconnected)
            stack.callback(self.memory.clear)
            stack.callback(self._shared.close)
            for ring in self.rings:
                stack.callback(ring.close)

    def _disconnected(self) -> None:
        try:
            self.device.disconnected()
        except Exception:
            log.exception("%s: the device failed to reset", self.device.name)

    def _serve(self, request: Request) -> Output | None:
        message = request.message
        log.debug("%s: %s", self.device.name, message)
        try:
            handler = _HANDLERS.get(type(message))
            if handler is None:
                raise ProtocolError(f"{message.name} is not supported by this back-end")
            value = handler(self, message, request)
        except (VhostError, OSError) as error:
            log.warning("%s: refused: %s: %s", self.device.name, message, str(error))
            return self._connection.ack(request, 1)
        except Exception:
            log.exception("%s: failed: %s", self.device.name, message)
            return self._connection.ack(request, 1)
        if value is not None:
            fds, self._answer_fds = self._answer_fds, []
            return self._connection.reply(request, value, fds)
        return self._connection.ack(request)

    # ---- features ----

    @_handles(fe.GetFeatures)
    def _get_features(self, _: fe.GetFeatures, request: Request) -> U64:
        return U64(self._offer.virtio)

    @_handles(fe.SetFeatures)
    def _set_features(self, message: fe.SetFeatures, request: Request) -> None:
        self.begun = True
        features = offered_only(message.features, self._offer.virtio)
        logging_only = features & ~_LOG_ALL == self._shared.features & ~_LOG_ALL
        with self._paused() if logging_only else self._started(Ring.changed):
            self._tell_device(features)
            if not logging_only:
                self._shared.translations.clear()
            self._shared.set_features(features, self._connection.protocol_features)
        log.info("%s: virtio features %#x negotiated", self.device.name, features)
        if not features & _PROTOCOL_FEATURES:
            self._apply(RingEvent.FEATURES_WITHOUT_PROTOCOL, self.rings)

    def _tell_device(self, features: int) -> None:
        try:
            self.device.negotiated(features & ~_LOG_ALL)
        except Exception:
            # It may have come half the way; the rings go on with what it had before.
            self._untell_device()
            raise

    def _untell_device(self) -> None:
        before = self._shared.features & ~_LOG_ALL
        try:
            if before:
                self.device.negotiated(before)
            else:
                self.device.reset()
        except Exception:
            log.exception("%s: the device failed to go back to features %#x", self.device.name, before)

    @_handles(fe.GetProtocolFeatures)
    def _get_protocol_features(self, _: fe.GetProtocolFeatures, request: Request) -> U64:
        return U64(self._offer.protocol)

    @_handles(fe.SetProtocolFeatures)
    def _set_protocol_features(self, message: fe.SetProtocolFeatures, request: Request) -> None:
        features = offered_protocol_features(message.features, self._offer.protocol)
        shared = self._shared
        same = shared.translates(shared.features, features) == (shared.iotlb is not None)
        with ExitStack() if same else self._started(Ring.changed):
            shared.set_features(shared.features, features)
        self._stand()
        log.info("%s: protocol features %#x negotiated", self.device.name, features)

    @_handles(fe.GetQueueNum)
    def _get_queue_num(self, _: fe.GetQueueNum, request: Request) -> U64:
        return U64(len(self.rings))

    # ---- owner and reset ----

    @_handles(fe.SetOwner)
    def _set_owner(self, _: fe.SetOwner, request: Request) -> None:
        # Nothing depends on it: to a back-end that comes back, DPDK's virtio-user does not send it again.
        self.begun = True

    @_handles(fe.ResetOwner)
    def _reset_owner(self, _: fe.ResetOwner, request: Request) -> None:
        # Deprecated, and read in two ways: to disable the rings is the one that hurts nobody.
        self._apply(RingEvent.RESET_OWNER, self.rings)

    @_handles(fe.ResetDevice)
    def _reset_device(self, _: fe.ResetDevice, request: Request) -> None:
        for ring in self.rings:
            ring.stop()
        self._apply(RingEvent.RESET_DEVICE, self.rings)
        self._shared.translations.rest()
        self.device.reset()
        self.device.negotiated(self._shared.features & ~_LOG_ALL)

    # ---- memory ----

    @_handles(fe.SetMemTable)
    def _set_mem_table(self, message: fe.SetMemTable, request: Request) -> None:
        self._check_xen()
        specs = [RegionSpec(*region) for region in message.regions]
        with self._started(Ring.moved):
            self.memory.replace(list(zip(specs, request.take_fds(), strict=True)))
            self._repeats.clear()
            self._shared.translations.clear()

    @_handles(fe.GetMaxMemSlots)
    def _get_max_mem_slots(self, _: fe.GetMaxMemSlots, request: Request) -> U64:
        return U64(self.memory.max_regions)

    @_handles(fe.AddMemReg)
    def _add_mem_reg(self, message: fe.AddMemReg, request: Request) -> None:
        self._check_xen()
        spec = RegionSpec(*message.region)
        if self._there(spec) == spec and self._repeats.added(message.region):
            return
        # Rings keep their pages.
        self.memory.add(spec, request.take_fd())
        for ring in self.rings:
            ring.refresh()
        self._shared.translations.retry()

    @_handles(fe.RemMemReg)
    def _rem_mem_reg(self, message: fe.RemMemReg, request: Request) -> None:
        spec = RegionSpec(*message.region)
        if self._there(spec) is None and self._repeats.removed(message.region):
            return
        with self._started(Ring.moved):
            self.memory.remove(spec)
            self._shared.translations.clear()

    def _there(self, spec: RegionSpec) -> RegionSpec | None:
        # What REM_MEM_REG would remove.
        region = self.memory.table.find(spec.guest_addr)
        if region is None:
            return None
        there = region.spec
        same = (there.guest_addr, there.size, there.user_addr) == (spec.guest_addr, spec.size, spec.user_addr)
        return there if same else None

    def _check_xen(self) -> None:
        check_xen(self._connection.protocol_features, "guest memory")

    def _started(self, pause: Callable[[Ring], AbstractContextManager[None]]) -> ExitStack:
        stack = ExitStack()
        for ring in self.rings:
            if ring.state.started:
                stack.enter_context(pause(ring))
        return stack

    def _paused(self) -> ExitStack:
        stack = ExitStack()
        for ring in self.rings:
            stack.enter_context(ring.paused())
        return stack

    # ---- translations ----

    @_handles(fe.SetBackendReqFd)  # as QEMU sends it
    def _set_backend_req_fd(self, _: fe.SetBackendReqFd, request: Request) -> None:
        self._shared.translations.set_channel(request.take_fd())

    @_handles(fe.IotlbMsg)
    def _iotlb_msg(self, message: fe.IotlbMsg, request: Request) -> U64:
        translations = self._shared.translations
        if translations.iotlb is None:
            raise ProtocolError(
                "addresses are not translated: that takes ACCESS_PLATFORM, BACKEND_REQ and REPLY_ACK"
            )
        if message.type == IotlbType.UPDATE:
            read, write = bool(message.perm & IotlbPerm.READ), bool(message.perm & IotlbPerm.WRITE)
            translations.update(message.iova, message.size, message.user_addr, read=read, write=write)
        elif message.type == IotlbType.INVALIDATE:
            gone = message.iova, message.size
            known = translations.known(*gone)
            with ExitStack() as stack:
                for ring in self.rings:
                    if known or ring.uses(*gone):
                        stack.enter_context(ring.without(*gone))
                translations.invalidate(*gone)
        else:
            raise ProtocolError(
                f"IOTLB_MSG of type {message.type}; a front-end updates (2) or invalidates (3)"
            )
        return U64(0)

    # ---- the dirty log ----

    @_handles(fe.SetLogBase)
    def _set_log_base(self, message: fe.SetLogBase, request: Request) -> LogBase:
        fd = request.take_fd()
        try:
            with self._paused():
                self._shared.set_log(fd, message.size, message.offset)
        finally:
            os.close(fd)
        return LogBase(message.size, message.offset)

    @_handles(fe.SetLogFd)
    def _set_log_fd(self, _: fe.SetLogFd, request: Request) -> None:
        with self._paused():
            self._shared.set_log_fd(request.take_fd())

    # ---- what is in flight ----

    @_handles(fe.GetInflightFd)
    def _get_inflight_fd(self, message: fe.GetInflightFd, request: Request) -> Inflight:
        spec, fd = self._shared.new_inflight(message.num_queues, message.queue_size, self._recorded())
        self._answer_fds.append(fd)
        return Inflight(spec.size, spec.offset, spec.num_queues, spec.queue_size)

    @_handles(fe.SetInflightFd)
    def _set_inflight_fd(self, message: fe.SetInflightFd, request: Request) -> None:
        fd = request.take_fd()
        spec = InflightSpec(message.mmap_size, message.mmap_offset, message.num_queues, message.queue_size)
        try:
            self._shared.set_inflight(InflightRegion(fd, spec), self._recorded())
        finally:
            os.close(fd)

    def _recorded(self) -> list[InflightRegion | None]:
        return [ring.recorded for ring in self.rings]

    # ---- rings ----

    @_handles(fe.SetVringNum)
    def _set_vring_num(self, message: fe.SetVringNum, request: Request) -> None:
        self._ring(message.index).set_size(message.num)

    @_handles(fe.SetVringAddr)
    def _set_vring_addr(self, message: fe.SetVringAddr, request: Request) -> None:
        if message.flags & ~_LOGGED:
            raise ProtocolError(f"flags {message.flags:#x}; only LOG ({_LOGGED}) is known")
        logged = message.log if message.flags & _LOGGED else None
        addresses = RingAddresses(message.descriptor, message.available, message.used, logged)
        self._ring(message.index).set_addresses(addresses)

    @_handles(fe.SetVringEndian)
    def _set_vring_endian(self, message: fe.SetVringEndian, request: Request) -> None:
        if message.endian not in (0, 1):
            raise ProtocolError(f"byte order {message.endian} is neither little (0) nor big (1)")
        self._ring(message.index).set_endian(bool(message.endian))

    @_handles(fe.SetVringBase)
    def _set_vring_base(self, message: fe.SetVringBase, request: Request) -> None:
        self._ring(message.index).set_base(message.base)

    @_handles(fe.GetVringBase)
    def _get_vring_base(self, message: fe.GetVringBase, request: Request) -> VringBase:
        base = self._ring(message.index).stop()
        if not any(ring.state.started for ring in self.rings):
            self._shared.translations.rest()
        return VringBase(message.index, base)

    @_handles(fe.SetVringKick)
    def _set_vring_kick(self, message: fe.SetVringKick, request: Request) -> None:
        self._shared.translations.begin()
        self._ring(message.index).set_kick(_optional_fd(message.no_fd, request))

    @_handles(fe.SetVringCall)
    def _set_vring_call(self, message: fe.SetVringCall, request: Request) -> None:
        self._ring(message.index).set_call(_optional_fd(message.no_fd, request))

    @_handles(fe.SetVringErr)
    def _set_vring_err(self, message: fe.SetVringErr, request: Request) -> None:
        self._ring(message.index).set_err(_optional_fd(message.no_fd, request))

    @_handles(fe.SetVringEnable)
    def _set_vring_enable(self, message: fe.SetVringEnable, request: Request) -> None:
        if message.num not in (0, 1):
            raise ProtocolError(f"{message.num} neither enables (1) nor disables (0)")
        features = self._shared.features
        if features and not features & _PROTOCOL_FEATURES:
            log.info("%s: %s, though PROTOCOL_FEATURES is not negotiated: done", self.device.name, message)
        event = RingEvent.ENABLE if message.num else RingEvent.DISABLE
        self._apply(event, [self._ring(message.index)])

    def _apply(self, event: RingEvent, rings: Sequence[Ring]) -> None:
        enabled = self._shared.enabled
        before = bool(enabled)
        for ring in rings:
            ring.apply(event)
        if bool(enabled) != before:
            for ring in self.rings:
                ring.settle()

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise ProtocolError(f"ring {index} of a device with {len(self.rings)}")
        return self.rings[index]

    # ---- configuration space ----

    @_handles(fe.GetConfig)
    def _get_config(self, message: fe.GetConfig, request: Request) -> ConfigReply:
        config = self.device.config()
        if message.offset >= len(config):
            raise ProtocolError(f"offset {message.offset} of a configuration space of {len(config)} bytes")
        # Front-ends read the space of the newest specification; fields a device does not have are zero.
        part = config[message.offset : message.offset + message.size].ljust(message.size, b"\0")
        return ConfigReply(message.offset, message.flags, part)

    @_handles(fe.SetConfig)
    def _set_config(self, message: fe.SetConfig, request: Request) -> None:
        if message.flags & ~_MIGRATION:
            raise ProtocolError(
                f"flags {message.flags:#x}; 0, a write of the driver, and {_MIGRATION}, migration, are known"
            )
        self.device.set_config(message.offset, message.data, migration=bool(message.flags))


def _optional_fd(no_fd: bool, request: Request) -> int:
    return -1 if no_fd else request.take_fd()
