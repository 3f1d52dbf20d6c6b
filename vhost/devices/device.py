# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The base class of devices: what a device offers, and when it is called.

A device sees queues and chains and nothing else: no socket, no message, no thread, no event loop.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from vhost.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import IntFlag

    from vhost.virtqueue import Chain, Queue

__all__ = ("Device",)

# Seconds for which answers are kept, to be returned together.
_TOGETHER = 0.0001


class Device:
    """A virtio device: override :meth:`process`, or :meth:`handle` for whole batches.

    The object outlives connections. All calls for one queue come one after the other; with
    :func:`vhost.serve` those for different queues may come from different threads at once, with
    :func:`vhost.serve_async` all come from the thread of the event loop.

    An exception out of :meth:`handle` or :meth:`process` breaks that one ring: it is logged, the front-end is
    told through the ring's err descriptor, and the ring rests until it is set up anew.
    """

    #: Short name, for logs: ``rng``.
    name: ClassVar[str] = "device"
    #: Virtio device id, as in the specification ("Device Types"); 0 is "reserved".
    device_id: ClassVar[int] = 0
    #: Number of virtqueues.
    num_queues: int = 1
    #: Threads that :func:`vhost.serve` gives it at most, None: one for each queue.
    threads: int | None = None
    #: The largest ring a front-end may choose: a power of two up to 32768.
    max_queue_size: int = 1024
    #: The device's own virtio feature bits; transport and ring bits are added by the backend.
    features: int = 0
    #: Their names, for users who choose among them: the flags of the device type, None: it has none.
    feature_type: ClassVar[type[IntFlag] | None] = None
    #: Whether requests are done in the order in which they were taken; then IN_ORDER is offered. It is served
    #: in any case, but where requests overtake each other each one waits for all before it.
    in_order: bool = True
    #: The most descriptors of a chain, None: the size of the ring, as the specification says.
    max_chain: int | None = None
    #: Whether rings are served while they are disabled too; :meth:`set_enabled` says what they are.
    serves_disabled: ClassVar[bool] = False
    #: Whether the back-end, and not the front-end, supplies the configuration space.
    offers_config: bool = False

    def config(self) -> bytes:
        """The whole configuration space; ``b""`` for none."""
        return b""

    def set_config(self, offset: int, data: bytes, *, migration: bool = False) -> None:
        """The driver writes `data` at `offset` of the configuration space.

        Front-ends write whatever part they like, some the whole space for each byte that the guest writes.
        So a device refuses a write that changes a field which is the device's own, and takes one that leaves
        it as it is (vhost-user, "VHOST_USER_SET_CONFIG").

        :param migration: not the driver writes, but the front-end, which brings what the space was where the
            guest came from: fields that a driver may not write are in it too.
        :raises DeviceError: the write is refused; the base class refuses all.
        """
        raise DeviceError(
            f"{self.name}: the configuration space is read-only, {len(data)} bytes at offset {offset} refused"
        )

    def negotiated(self, features: int) -> None:
        """The front-end has acknowledged `features` (all bits, not only the device's own)."""

    def start(self, queue: Queue) -> None:
        """The ring of `queue` has started; :meth:`handle` follows as soon as it is enabled.

        It is the same queue as before where the device has not returned all chains when the ring stopped.
        """

    def set_enabled(self, index: int, enabled: bool) -> None:
        """The started ring `index` is enabled or disabled; it is not served while this runs.

        What the driver puts into a disabled ring must have no effect. Only where :attr:`serves_disabled`; the
        disabled rings of other devices are stopped.
        """

    def stop(self, index: int) -> None:
        """The ring `index` stops: the guest has disabled it, or its memory goes, or it is over.

        This is the moment to return all chains, or at least to write to none of them any more. Those that are
        returned later reach the driver if the ring goes on in between, see :meth:`start`.
        """

    def path(self, queue: Queue) -> Any | None:
        """A native data path for `queue`: a ``struct vh_path *`` that lives until :meth:`stop`, None for
        none.

        With one, :meth:`handle` is not called, and :meth:`process` only for what the path leaves to it.
        """
        return None

    def handle(self, queue: Queue) -> float | None:
        """Serve what is in `queue`; called whenever there may be something, which may turn out to be nothing.

        :returns: None, or seconds after which to look again even without a kick.
        """
        while batch := queue.pop():
            pushed = monotonic()
            for index, chain in enumerate(batch):
                if (steps := self.process(chain)) is not None:
                    queue.serve_in_steps(batch, index, steps)
                    break
                chain.done()
                # What is quick is returned together; what is slow does not keep the driver waiting.
                if (now := monotonic()) - pushed > _TOGETHER:
                    queue.push_done(batch)
                    pushed = now
            queue.push_done(batch)
        return None

    def process(self, chain: Chain) -> Iterator[None] | None:
        """Serve one request: read it from `chain`, write the answer to it; the caller pushes it.

        A request that may take long is served in steps: by a generator that yields every 10 ms or so. Between
        two steps other rings have their turn, and the ring may stop: then the generator is closed, and the
        request comes again later, to be served from its start. So it must do no harm to serve it twice.

        :raises NotImplementedError: the device overrides neither this nor :meth:`handle`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither process() nor handle()")

    def reset(self) -> None:
        """A device reset: back to the state after power-on, and what a driver chose is forgotten."""

    def disconnected(self) -> None:
        """The connection has ended, and what comes next is another front-end's; the base class resets."""
        self.reset()

    def close(self) -> None:
        """Release what the device holds; nothing is called after this."""
