# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A conversation with one backend: guest memory, what was negotiated, and the rings.

Everything that may have to wait is an exchange; :class:`vhost.frontend.frontend.Frontend` and
:class:`vhost.frontend.aio.AsyncFrontend` run them.
"""

import os
import socket
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from vhost.errors import LocalProtocolError
from vhost.io import Listener
from vhost.protocol import (
    BackendIotlbMsg,
    ConfigChangeMsg,
    ConfigReply,
    GetConfig,
    GetFeatures,
    GetVringBase,
    IotlbMsg,
    IotlbType,
    Message,
    Payload,
    ProtocolFeature,
    ResetDevice,
    SetBackendReqFd,
    SetConfig,
    SetFeatures,
    SetVringEnable,
    VirtioFeature,
    VringBase,
)

from .channel import BackendChannel
from .exchange import Accept, Dial, Exchange
from .inflight import InflightRegion, fetch
from .iommu import update
from .link import Link
from .log import DirtyLog
from .negotiate import Negotiated, Options, negotiate, share
from .ram import GuestRam
from .reconnect import Reconnect
from .ring import Data, Ring, parts
from .vring import Vring

__all__ = ("Session", "Target")

_T = TypeVar("_T")

#: Where a backend is: the path of its socket, or a connected socket, which the session closes.
Target: TypeAlias = str | os.PathLike[str] | socket.socket


class Session:
    """All that belongs to a backend; :meth:`close` leaves nothing of it.

    :param target: where the backend is, or where it will connect to, which the session closes as well.

    :ivar place: where to look for the backend, None: only the socket is known that was connected.
    """

    def __init__(self, target: Target | Listener, options: Options) -> None:
        self.options = options
        self._listener = target if isinstance(target, Listener) else None
        self.ram = GuestRam(options.ram_size, options.regions)
        self.negotiated = Negotiated(0, 0, 0, 0, None)
        self.rings: list[Ring] = []
        self.inflight: InflightRegion | None = None
        self.log: DirtyLog | None = None
        #: How often the backend said that the configuration space has changed.
        self.config_changes = 0
        self.reconnecting = Reconnect(self)
        try:
            self.link = self.aim(target)
        except BaseException:
            self.ram.close()
            raise

    def aim(self, target: Target | Listener) -> Link:
        """A link for `target`, which stays what is connected to until the next."""
        self.place: str | Listener | None = None
        if isinstance(target, socket.socket):
            return Link(target, self.options.quirks)
        self.place = target if isinstance(target, Listener) else os.fspath(target)
        return Link(socket.socket(socket.AF_UNIX), self.options.quirks)

    def open(self) -> Exchange[None]:
        """Connect, negotiate, share memory, start the rings."""
        options = self.options
        yield from self.dial()
        self.negotiated = yield from negotiate(self.link, options)
        yield from self.introduce()
        if self.negotiated.protocol_features & ProtocolFeature.INFLIGHT_SHMFD:
            yield from self._record()
        for index in range(options.queues):
            vring = Vring(index, self.ram, options, self.negotiated.features)
            self.rings.append(Ring(vring, self.ram, self.link, self.reconnecting.revive))
            yield from self.start(index)
        yield from self.make_sure()

    def dial(self, until: float | None = None) -> Exchange[None]:
        """Connect the link, if it is not connected already.

        :param until: monotonic time; before it, that nobody is there is no reason to give up.
        """
        if isinstance(self.place, str):
            yield Dial(self.link.sock, self.place, until or 0.0)
        elif self.place is not None:
            step = Accept(self.place, until)
            try:
                yield step
            except BaseException:
                if step.sock is not None:
                    step.sock.close()
                raise
            assert step.sock is not None
            self.link.adopt(step.sock)

    def introduce(self) -> Exchange[None]:
        """What a backend has to know before the rings: where to ask, and guest memory."""
        agreed = self.negotiated
        if agreed.protocol_features & ProtocolFeature.BACKEND_REQ:
            channel = BackendChannel(self._asked, agreed.features, agreed.protocol_features)
            self.link.channel = channel
            yield from self.link.exchange(SetBackendReqFd(), (channel.theirs.fileno(),))
            channel.theirs.close()
        yield from share(self.link, self.ram, agreed, slots=self.options.slots)

    def make_sure(self) -> Exchange[None]:
        """Without acknowledgements: the answer to this shows that the backend got over all that was sent."""
        if not self.negotiated.protocol_features & ProtocolFeature.REPLY_ACK:
            yield from self.link.ask(GetFeatures())

    def _record(self) -> Exchange[None]:
        # A device that was reset gets a new region too.
        region = yield from fetch(self.link, max(1, self.options.queues), self.options.queue_size)
        if self.inflight is not None:
            self.inflight.close()
        self.inflight = region
        yield from region.hand_over(self.link)

    def _asked(self, message: Message) -> int:
        match message:
            case BackendIotlbMsg(iova=iova, type=IotlbType.MISS) if self.options.iommu is not None:
                answer = update(self.options.iommu, self.ram, iova)
                if answer is None:
                    return 1
                self.link.post(answer)
                return 0
            case BackendIotlbMsg(type=IotlbType.ACCESS_FAIL):
                return 0
            case ConfigChangeMsg():
                self.config_changes += 1
                return 0
        return 1

    # ---- rings ---------------------------------------------------------------------------------------------

    def start(self, index: int, base: int | None = None) -> Exchange[None]:
        """Start ring `index` where it stopped, or at `base`."""
        ring = self.ring(index)
        if ring.running:
            raise ValueError(f"queue {index} is running; stop it first")
        yield from self.serve(ring, base)

    def serve(self, ring: Ring, base: int | None = None) -> Exchange[None]:
        """Have the backend serve a ring, from `base` on or from where it was left."""
        if ring.broken and self.inflight is not None:
            self.inflight.forget(ring.index)
        for message, fds in ring.setup(base):
            yield from self.link.exchange(message, fds)
        if self.negotiated.features & VirtioFeature.PROTOCOL_FEATURES:
            yield from self.link.exchange(SetVringEnable(ring.index, 1))
        ring.started()

    def stop(self, index: int) -> Exchange[int]:
        """Stop ring `index`; the base to go on from."""
        ring = self.ring(index)
        answer = yield from self._steady(lambda: self.link.exchange(GetVringBase(index)))
        if not isinstance(answer, VringBase) or answer.index != index:
            raise self.link.out_of_step(f"GET_VRING_BASE of queue {index} was answered with {answer}")
        ring.stopped(answer.base)
        return answer.base

    def reset(self) -> Exchange[None]:
        """Put the device back into its first state; the rings stop, and start from scratch."""
        yield from self.exchange(ResetDevice())
        for ring in self.rings:
            ring.reset()
        # Back-ends forget what was acknowledged, or do not.
        yield from self.exchange(SetFeatures(self.negotiated.features))
        if self.inflight is not None:
            yield from self._record()

    def ring(self, index: int) -> Ring:
        """The ring `index`, one of those that the session started."""
        if not 0 <= index < len(self.rings):
            raise IndexError(
                f"queue {index}: this session has {len(self.rings)}; connect with queues={index + 1}"
            )
        return self.rings[index]

    def request(
        self, readable: Data | Sequence[Data], writable: int | Sequence[int], queue: int
    ) -> Exchange[bytes]:
        """One request on a queue, from submission to what the device wrote."""
        return (yield from self.ring(queue).request(*parts(readable, writable)))

    # ---- messages ------------------------------------------------------------------------------------------

    def exchange(self, message: Message, fds: Sequence[int] = ()) -> Exchange[Payload | None]:
        """One message and its answer, once a reconnect that is under way is done."""
        yield from self.reconnecting.settled()
        return (yield from self.link.exchange(message, fds))

    def _steady(self, ask: Callable[[], Exchange[_T]]) -> Exchange[_T]:
        # For messages that do no harm if a backend gets them twice.
        yield from self.reconnecting.settled()
        link = self.link
        try:
            return (yield from ask())
        except ConnectionError:
            if not (yield from self.reconnecting.revive(link)):
                raise
        return (yield from ask())

    def config(self, offset: int, size: int) -> Exchange[bytes]:
        """Read the configuration space.

        :raises RefusedError: the device has no such part of it.
        """
        answer = yield from self._steady(lambda: self.link.exchange(GetConfig(offset, size, 0)))
        if not isinstance(answer, ConfigReply):
            raise self.link.out_of_step(f"GET_CONFIG was answered with {answer}")
        if len(answer.data) != size or answer.offset != offset:
            raise self.link.out_of_step(
                f"GET_CONFIG of {size} bytes at {offset} was answered with "
                f"{len(answer.data)} at {answer.offset}"
            )
        return answer.data

    def set_config(self, offset: int, data: bytes, *, migration: bool = False) -> Exchange[None]:
        """Write the configuration space, as a driver does, or as one who migrates."""
        yield from self._steady(lambda: self.link.exchange(SetConfig(offset, int(migration), data)))

    def invalidate(self, iova: int, size: int) -> Exchange[None]:
        """Have the backend forget translations."""
        yield from self.exchange(IotlbMsg(iova, size, 0, 0, IotlbType.INVALIDATE))

    def translate(self, iova: int) -> Exchange[None]:
        """Tell the backend a translation that it has not asked for."""
        if self.options.iommu is None:
            raise LocalProtocolError("there are no I/O addresses without iommu=")
        message = update(self.options.iommu, self.ram, iova)
        if message is None:
            raise ValueError(f"nothing is mapped at I/O address {iova:#x}")
        yield from self.exchange(message)

    # ---- the dirty log -------------------------------------------------------------------------------------

    def log_start(self) -> Exchange[None]:
        """Have the backend mark the pages it writes, in a log that is empty."""
        if not self.negotiated.offered_features & VirtioFeature.LOG_ALL:
            raise LocalProtocolError("the backend does not offer LOG_ALL (virtio feature bit 26)")
        yield from self.reconnecting.settled()
        log = DirtyLog(self.ram.end)
        old, self.log = self.log, log
        if old is not None:
            old.close()
        yield from self.log_on()
        for ring in self.rings:
            ring.vring.logged = True
        yield from self._addresses()

    def log_on(self) -> Exchange[None]:
        """Hand the log over, and switch it on for what is written to buffers."""
        assert self.log is not None
        yield from self.link.exchange(self.log.message(), (self.log.fileno(),))
        yield from self.link.exchange(SetFeatures(self.negotiated.features | VirtioFeature.LOG_ALL))

    def log_stop(self) -> Exchange[None]:
        """Switch the log off; what it holds can still be read."""
        for ring in self.rings:
            ring.vring.logged = False
        yield from self._addresses()
        yield from self.exchange(SetFeatures(self.negotiated.features))

    def _addresses(self) -> Exchange[None]:
        for ring in self.rings:
            if ring.running:
                yield from self.exchange(ring.vring.addresses())

    def dirty(self) -> list[int]:
        """Pages written since the last time."""
        if self.log is None:
            raise ValueError("there is no dirty log; log_start() makes one")
        return self.log.take()

    # ---- the end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close and unmap everything; the backend sees the end of the connection."""
        self.reconnecting.close()
        self.link.close()
        for ring in self.rings:
            ring.close()
        self.rings.clear()
        for part in (self.inflight, self.log):
            if part is not None:
                part.close()
        self.inflight = self.log = None
        if self._listener is not None:
            self._listener.close()
        self.ram.close()
