# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A queue with the native data path that serves it, if it has one: what the C core's loops work on."""

from collections.abc import Callable, Iterator
from typing import Any, Final, final

from vhost._core import ffi, lib
from vhost.virtqueue.batch import Batch
from vhost.virtqueue.chain import Chain
from vhost.virtqueue.queue import Queue

__all__ = ("Lane",)

# Batches of a path that completes chains later; of one that does not.
FLYING: Final = 16
STANDING: Final = 2


@final
class Lane:
    """Belongs to whoever runs the queue.

    :param path: ``struct vh_path *``, None: all chains are the device's Python's.
    :param kick_fd: what the driver kicks, -1: it does not.
    """

    def __init__(self, queue: Queue, path: Any | None, kick_fd: int) -> None:
        self.queue = queue
        self.path = path
        #: ``struct vh_lane *``
        self.cdata: Any = ffi.new("struct vh_lane *", {"queue": queue.cdata, "kick_fd": kick_fd, "look": 1})
        self.cdata.kick_checked = kick_fd >= 0 and not lib.vh_is_counter(kick_fd)
        self._batches: list[Batch] = []
        if path is not None:
            self.cdata.path = path
            count = FLYING if path.reap and path.serve else STANDING if path.serve else 0
            # Number 0 is a queue's own.
            self._batches = [queue.new_batch(1 + index) for index in range(count)]
            for batch in reversed(self._batches):
                lib.vh_lane_return(self.cdata, batch.cdata)

    @property
    def native(self) -> bool:
        """Whether a data path serves the queue."""
        return self.path is not None

    def serve(self, budget: int) -> int:
        """Have the data path serve up to `budget` chains: ``enum vh_served``."""
        return lib.vh_serve(self.cdata, budget)

    def busy(self) -> bool:
        """Whether there is something to serve."""
        return bool(lib.vh_lane_busy(self.cdata))

    @property
    def event_fd(self) -> int:
        """What becomes readable when the data path completes something or has something for the driver; or
        -1."""
        path = self.path
        if path is None or not (path.flying if path.serve else not path.starved):
            return -1
        return int(path.event_fd)

    def finish(self, process: Callable[[Chain], Iterator[None] | None]) -> None:
        """Serve what the data path has left to Python.

        A request for which `process` returns an iterator is served in steps, with :meth:`step`.

        :raises VirtqueueError: the guest did not grant what a chain needs.
        """
        # Rare requests come in between: what was given to the path before is through then.
        self.drain()
        batch = self._batches[self.cdata.left.index - 1]
        self.cdata.left = ffi.NULL
        queue, n = self.queue, len(batch)
        try:
            if batch.cdata.n_defer:
                n = queue.map(batch)
                queue.check(n)
                if n > 0:
                    left = lib.vh_path_serve(self.path, queue.cdata, batch.cdata)
                    if len(batch) < n or not left:
                        self.cdata.single = len(batch) < n
            batch.table = queue.table
            for chain in batch.left() if n > 0 else ():
                if (steps := process(chain)) is not None and not self._begin(batch, steps):
                    return
                chain.done()
            if n > 0:
                queue.push_done(batch)
        finally:
            self._return(batch)

    def _begin(self, batch: Batch, steps: Iterator[None]) -> bool:
        # True: all steps are taken, and the chain is to be returned. Where it has company, which the path may
        # have completed, the request cannot go back to the ring, and so it does not give way.
        if len(batch) == 1:
            self.queue.serve_in_steps(batch, 0, steps)
            self.queue.step()  # mostly it is the only one
            return False
        for _ in steps:
            pass
        return True

    def step(self) -> None:
        """Take the next step of the request that is served in steps."""
        if (steps := self.queue.steps) is not None:
            try:
                self.queue.step()
            finally:
                self._return(steps.batch)

    def put_back(self) -> None:
        """Give the request that is served in steps up: it is on the ring again."""
        if (steps := self.queue.steps) is not None:
            try:
                self.queue.put_back()
            finally:
                self._return(steps.batch)

    def _return(self, batch: Batch) -> None:
        if batch.cdata.index and not batch.cdata.pending:
            lib.vh_lane_return(self.cdata, batch.cdata)

    def drain(self) -> None:
        """Wait until the data path has nothing in flight."""
        lib.vh_drain(self.cdata)
