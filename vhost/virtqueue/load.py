# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A load on a device that needs no Python while it runs."""

from collections.abc import Sequence
from typing import TypeAlias

from vhost._core import ffi, lib
from vhost.errors import VirtqueueError
from vhost.virtqueue.driver import WORDS, DriverQueue

__all__ = ("Load", "Buffers")

#: Readable and writable buffers of a request, each a guest address and a length.
Buffers: TypeAlias = tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]


class Load:
    """The same requests over and over on a ring that has nothing else in flight.

    :param requests: what is in flight at once, each with buffers of its own and all with as many.
    :param batch: how many have to come back before as many are sent again; 1 sends them as they come.
    :param limit: requests to send in all, None for no limit.
    :param kick_fd: eventfd to tell the device by, -1 if it polls.
    :param call_fd: non-blocking eventfd to wait for, -1 to look at the ring without a pause.

    Synchronization: none.
    """

    def __init__(
        self,
        driver: DriverQueue,
        requests: Sequence[Buffers],
        *,
        batch: int = 1,
        limit: int | None = None,
        kick_fd: int = -1,
        call_fd: int = -1,
    ) -> None:
        bufs = [
            (gpa, length, write)
            for parts in requests
            for write, part in enumerate(parts)
            for gpa, length in part
        ]
        counts = {len(readable) + len(writable) for readable, writable in requests}
        if len(counts) != 1 or not len(requests) <= driver.size or counts == {0}:
            raise ValueError(
                f"{len(requests)} requests of {sorted(counts)} buffers: "
                f"1 to {driver.size} are wanted, all of as many buffers"
            )
        self._driver = driver
        self._keep = (
            ffi.new("struct vh_buf[]", bufs),
            ffi.new("uint32_t[]", driver.size),
            ffi.new("struct vh_used[]", driver.size),
        )
        self._l = ffi.new(
            "struct vh_load *",
            {
                "bufs": self._keep[0],
                "slots": self._keep[1],
                "used": self._keep[2],
                "n_bufs": counts.pop(),
                "depth": len(requests),
                "batch": batch,
                "kick_fd": kick_fd,
                "call_fd": call_fd,
                "limit": 2**64 - 1 if limit is None else limit,
            },
        )

    def run(self, seconds: float) -> bool:
        """Go on for so long, without the GIL; true once all has been sent and has come back.

        :raises VirtqueueError: the device returned what it was not given.
        """
        state = lib.vh_driver_load(self._driver.cdata, self._l, int(seconds * 1e9))
        if state < 0:
            raise VirtqueueError(WORDS[state])
        return bool(state)

    def finish(self) -> None:
        """Send nothing more; :meth:`run` until it is true takes back what is in flight."""
        self._l.limit = self._l.sent

    @property
    def sent(self) -> int:
        """Requests sent."""
        return int(self._l.sent)

    @property
    def done(self) -> int:
        """Requests that came back."""
        return int(self._l.done)

    @property
    def written(self) -> int:
        """Bytes the device says it has written."""
        return int(self._l.written)

    @property
    def kicks(self) -> int:
        """Kicks the device wanted."""
        return int(self._l.kicks)

    @property
    def sleeps(self) -> int:
        """How often there was nothing to do but wait for a call."""
        return int(self._l.sleeps)
