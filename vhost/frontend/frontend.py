# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Drives a vhost-user backend from blocking code."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

from vhost.protocol import Message, Payload, Quirks

from .exchange import Exchange
from .iommu import Iommu
from .negotiate import Options
from .queue import FrontendQueue
from .ram import GuestRam
from .ring import Data
from .session import Session, Target
from .wait import wait

__all__ = ("connect", "opened", "Frontend", "FrontendBase")

_T = TypeVar("_T")


def connect(
    target: Target,
    *,
    features: int | None = None,
    protocol_features: int | None = None,
    queues: int = 1,
    queue_size: int = 128,
    ram_size: int = 64 << 20,
    timeout: float | None = 10.0,
    event_idx: bool = True,
    indirect: bool = True,
    slots: bool = False,
    regions: int = 1,
    packed: bool = False,
    in_order: bool = False,
    big_endian: bool = False,
    kick: bool = True,
    call: bool = True,
    inflight: bool | None = None,
    reconnect: float = 0.0,
    iommu: Iommu | None = None,
    quirks: str = "",
) -> "Frontend":
    """Connect to a backend, negotiate, share memory and start the queues.

    ::

        with connect("/run/rng.sock") as device:
            print(device.request(writable=16))

    :param target: path of the backend's socket, or a connected socket, which the frontend closes.
    :param features: virtio features to acknowledge, None: all that are offered and can be driven.
    :param protocol_features: likewise, vhost-user protocol features.
    :param queues: number of queues to start.
    :param queue_size: entries of each ring, a power of two up to 32768.
    :param ram_size: bytes of guest memory, for rings and requests.
    :param timeout: seconds for this call, and for each later one that does not say otherwise; None: no limit.
    :param event_idx: acknowledge RING_EVENT_IDX when it is offered, if `features` is None.
    :param indirect: likewise, RING_INDIRECT_DESC.
    :param slots: share memory with ADD_MEM_REG instead of SET_MEM_TABLE.
    :param regions: how many regions guest memory has, of equal size; more than 8 are shared with ADD_MEM_REG,
        if the backend has slots for so many.
    :param packed: use packed rings; `queue_size` need not be a power of two then.
    :param in_order: acknowledge IN_ORDER: the backend returns requests in the order in which they were sent.
    :param big_endian: rings as a legacy driver on a big-endian machine has them, without VERSION_1.
    :param kick: False: give the backend no descriptor to be kicked by; it has to poll the rings.
    :param call: likewise, none to call us by; this side polls while it waits.
    :param inflight: have the backend record what is in flight, so that nothing is lost if it dies; None: if
        it offers that and `reconnect` is set.
    :param reconnect: when the backend goes away, try for so many seconds to get back to it and go on with
        what is in flight. 0: who waits gets an ``OSError``, and may call :meth:`Frontend.reconnect`.
    :param iommu: put rings and buffers at I/O addresses, which the backend has to ask this for
        (ACCESS_PLATFORM), for instance a :class:`vhost.frontend.LinearIommu`.
    :param quirks: rows of :class:`vhost.protocol.Quirks` to switch on for this backend, or off with a minus
        in front: ``"shmem-bit-21,-log-base-reply"``.
    :raises RefusedError: the backend refused a request; it is named.
    :raises RemoteProtocolError: the backend broke the protocol.
    :raises LocalProtocolError: something was asked for that the backend does not offer.
    :raises TimeoutError: it took too long; the message names what was waited for.
    :raises OSError: nobody listens, or the backend went away.
    """
    options = Options(
        features=features,
        protocol_features=protocol_features,
        queues=queues,
        queue_size=queue_size,
        ram_size=ram_size,
        event_idx=event_idx,
        indirect=indirect,
        slots=slots,
        regions=regions,
        packed=packed,
        in_order=in_order,
        big_endian=big_endian,
        kick=kick,
        call=call,
        inflight=inflight,
        reconnect=reconnect,
        iommu=iommu,
        quirks=Quirks.choose(quirks),
    )
    return opened(Session(target, options), timeout)


def opened(session: Session, timeout: float | None) -> "Frontend":
    """The frontend of a session that is opened now, or closed if that fails."""
    try:
        wait(session.open(), timeout)
    except BaseException:
        session.close()
        raise
    return Frontend(session, timeout)


class FrontendBase:
    """What was negotiated, and guest memory: the same in blocking code and in an event loop."""

    def __init__(self, session: Session, timeout: float | None) -> None:
        self._session = session
        self._timeout = timeout

    @property
    def big_endian(self) -> bool:
        """Whether the driver is a legacy one on a big-endian machine, as are the fields of its requests."""
        return self._session.options.big_endian

    @property
    def offered_features(self) -> int:
        """Virtio features the backend offers."""
        return self._session.negotiated.offered_features

    @property
    def features(self) -> int:
        """Virtio features that were acknowledged."""
        return self._session.negotiated.features

    @property
    def offered_protocol_features(self) -> int:
        """Protocol features the backend offers; 0 also if it knows none."""
        return self._session.negotiated.offered_protocol_features

    @property
    def protocol_features(self) -> int:
        """Protocol features that were acknowledged."""
        return self._session.negotiated.protocol_features

    @property
    def num_queues(self) -> int | None:
        """Rings the backend has, None if it does not say (without MQ)."""
        return self._session.negotiated.num_queues

    @property
    def ram(self) -> GuestRam:
        """Guest memory, for requests whose buffers the caller lays out."""
        return self._session.ram

    @property
    def config_changes(self) -> int:
        """How often the backend said that its configuration space has changed; needs BACKEND_REQ."""
        return self._session.config_changes

    def dirty(self) -> list[int]:
        """Guest addresses of the 4096-byte pages the backend has written since the last call, sorted.

        They count as clean from then on; no write is missed in between.

        :raises ValueError: no ``log_start`` came before.
        """
        return self._session.dirty()

    def fileno(self) -> int:
        """The socket's descriptor; another one after a reconnect."""
        return self._session.link.fileno()

    def close(self) -> None:
        """Close the connection and release guest memory; what is in flight is lost."""
        self._session.close()


class Frontend(FrontendBase):
    """A connected backend, from :func:`connect`. Not thread-safe."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(
        self,
        readable: Data | Sequence[Data] = b"",
        writable: int | Sequence[int] = 0,
        *,
        queue: int = 0,
        timeout: float | None = None,
    ) -> bytes:
        """One request: submit it, wait for it, and return what the device wrote.

        :param readable: what the device reads, one descriptor for each piece.
        :param writable: bytes the device may write, one descriptor for each size.
        :param timeout: seconds, None: as :func:`connect` was told.
        :raises VirtqueueError: the ring is broken, by our account or the backend's.
        :raises TimeoutError: no completion in time.
        :raises OSError: the backend is gone.
        """
        return self._run(self._session.request(readable, writable, queue), timeout)

    def queue(self, index: int) -> FrontendQueue:
        """The queue `index`, to have many requests in flight."""
        return FrontendQueue(self._session.ring(index), self._timeout)

    def config(self, offset: int = 0, size: int = 256) -> bytes:
        """Read `size` bytes of the configuration space; some backends refuse to read beyond its end.

        :raises RefusedError: the backend does not have these bytes.
        :raises LocalProtocolError: the backend does not offer CONFIG.
        """
        return self._run(self._session.config(offset, size))

    def set_config(self, offset: int, data: bytes, *, migration: bool = False) -> None:
        """Write `data` at `offset` of the configuration space.

        :param migration: not on behalf of the driver: this is what the space was on the machine that the
            guest came from.
        :raises RefusedError: the device does not take it; not noticed without REPLY_ACK.
        """
        self._run(self._session.set_config(offset, data, migration=migration))

    def stop(self, index: int) -> int:
        """Stop a queue; returns the base, the next entry of the avail ring the device would take."""
        return self._run(self._session.stop(index))

    def start(self, index: int, base: int | None = None) -> None:
        """Start a queue that was stopped, where it stopped or at `base`; a broken one starts from scratch."""
        self._run(self._session.start(index, base))

    def reset(self) -> None:
        """Reset the device. All queues are stopped then, what was in flight is lost; start them as needed.

        :raises LocalProtocolError: the backend does not offer RESET_DEVICE.
        """
        self._run(self._session.reset())

    def exchange(self, message: Message, fds: Sequence[int] = ()) -> Payload | None:
        """Send one message, with descriptors, which stay open; returns the value it is answered with, if any.

        :raises RefusedError: the answer says that it failed.
        """
        return self._run(self._session.exchange(message, fds))

    def reconnect(
        self, target: Target | None = None, *, seconds: float = 0.0, resubmit: bool | None = None
    ) -> None:
        """Go on with a backend that was started anew, or with another one, where the last one left off.

        Features, memory and rings are as before. With an inflight region requests in flight stay so, and are
        answered once. Without one nobody knows which of them were done: `resubmit` has to say.

        :param target: where the backend is, None: where it was.
        :param seconds: how long to try if nobody listens there yet.
        :param resubmit: without an inflight region, run all that is in flight again, in its order; False
            forgets it instead.
        :raises LocalProtocolError: the backend offers less than it did before.
        :raises VirtqueueError: requests are in flight, there is no inflight region, and `resubmit` is None.
        :raises OSError: nobody listens.
        """
        self._run(self._session.reconnecting.run(target, patience=seconds, resubmit=resubmit))

    def log_start(self) -> None:
        """Have the backend mark the pages it writes in a dirty log, which :meth:`dirty` reads.

        :raises LocalProtocolError: it does not offer LOG_ALL or LOG_SHMFD.
        """
        self._run(self._session.log_start())

    def log_stop(self) -> None:
        """Switch the dirty log off; what was marked can still be read."""
        self._run(self._session.log_stop())

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        """Have the backend forget what is at `size` bytes of I/O addresses from `iova`.

        :raises RefusedError: it cannot.
        :raises LocalProtocolError: ACCESS_PLATFORM was not negotiated, see ``iommu=`` of :func:`connect`.
        """
        self._run(self._session.invalidate(iova, size))

    def iotlb_update(self, iova: int) -> None:
        """Tell the backend what is at `iova` before it asks.

        :raises ValueError: nothing is.
        """
        self._run(self._session.translate(iova))

    def _run(self, exchange: Exchange[_T], timeout: float | None = None) -> _T:
        return wait(exchange, self._timeout if timeout is None else timeout)
