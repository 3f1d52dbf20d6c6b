# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A queue with the native data path that serves it, if it has one: what the C core's loops work on."""

from collections.abc import Callable
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

    def finish(self, process: Callable[[Chain], None]) -> None:
        """Serve what the data path has left to Python.

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
                    lib.vh_path_serve(self.path, queue.cdata, batch.cdata)
            batch.table = queue.table
            for chain in batch.left() if n > 0 else ():
                process(chain)
                chain.done()
            if n > 0:
                queue.push_done(batch)
        finally:
            if not batch.cdata.pending:
                lib.vh_lane_return(self.cdata, batch.cdata)

    def drain(self) -> None:
        """Wait until the data path has nothing in flight."""
        lib.vh_drain(self.cdata)
