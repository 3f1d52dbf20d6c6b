# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A queue of a blocking frontend."""

import errno
from collections.abc import Sequence

from .ring import Completion, Data, Ring, parts
from .wait import wait

__all__ = ("QueueBase", "FrontendQueue")


class QueueBase:
    """What needs no waiting, and so is the same in blocking code and in an event loop."""

    def __init__(self, ring: Ring, timeout: float | None) -> None:
        self._ring = ring
        self._timeout = timeout

    @property
    def index(self) -> int:
        """Number of the queue."""
        return self._ring.index

    @property
    def size(self) -> int:
        """Entries of the ring."""
        return self._ring.vring.size

    @property
    def running(self) -> bool:
        """Whether the backend serves the ring."""
        return self._ring.running

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and whose completion nobody has taken yet.

        While there are any, ``wait()`` returns one: ``while queue.in_flight: queue.wait()`` takes all.
        """
        return self._ring.untaken

    def submit(
        self,
        readable: Data | Sequence[Data] = b"",
        writable: int | Sequence[int] = 0,
        *,
        publish: bool = True,
    ) -> int:
        """Queue a request without waiting for anything.

        :param readable: what the device reads, one descriptor for each piece.
        :param writable: bytes the device may write, one descriptor for each size.
        :param publish: show it to the device now; otherwise :meth:`publish` shows all that were queued.
        :returns: a token that names the request.
        :raises BlockingIOError: the ring is full; wait for a completion.
        :raises ValueError: the ring can never hold the request.
        :raises VirtqueueError: the ring is broken; stop and start it.
        """
        token = self._ring.submit(*parts(readable, writable), publish=publish)
        if token is None:
            raise BlockingIOError(
                errno.EAGAIN,
                f"queue {self.index} is full with {self._ring.in_flight} requests in flight; "
                "wait for one of them",
            )
        return token

    def publish(self) -> None:
        """Show the device what was queued with ``publish=False``."""
        self._ring.publish()

    def completed(self) -> list[Completion]:
        """What has come back and was not asked for yet, in the device's order; does not wait."""
        self._ring.reap()
        done = []
        while (completion := self._ring.take()) is not None:
            done.append(completion)
        return done

    def drop(self, token: int) -> None:
        """Forget a request; its memory is used again only after the device has returned it."""
        self._ring.drop(token)


class FrontendQueue(QueueBase):
    """A queue: many requests in flight, completions in any order. Not thread-safe."""

    def wait(self, token: int | None = None, *, timeout: float | None = None) -> Completion:
        """Wait for the request `token`, or for whichever comes back next, if none has yet.

        What was queued with ``publish=False`` is published.

        :param timeout: seconds, None: as the frontend was told at :func:`connect`. The request stays in
            flight after a ``TimeoutError``.
        :raises LookupError: no such request is in flight.
        :raises VirtqueueError: the ring is broken.
        :raises OSError: the backend is gone.
        """
        return wait(self._ring.completion(token), self._timeout if timeout is None else timeout)

    def make_room(self, *, timeout: float | None = None) -> bool:
        """Wait until at least one more request has come back; what came back stays to be asked for.

        :returns: False, at once, if the device holds no request: there will not be more room.
        """
        return wait(self._ring.room(), self._timeout if timeout is None else timeout)
