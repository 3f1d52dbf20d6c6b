# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs rings in threads: each waits for a group of them in the C core, where the interpreter lock is free."""

import _thread
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost._core import ffi, lib
from vhost.errors import DeviceError
from vhost.io.cpus import node_cpus

if TYPE_CHECKING:  # a daemon that listens knows how to wait before it knows what for
    from vhost.backend.ring import Ring

__all__ = ("Polling", "Workers")

log = logging.getLogger("vhost.backend")

#: Seconds after which a worker that does not pause is looked after.
PATIENCE: Final = 1.0
#: Microseconds of polling before a sleep, where it pays.
POLL_US: Final = 50


@dataclass(frozen=True, slots=True)
class Polling:
    """How workers wait, and where they run.

    :param us: microseconds to look at the rings before a sleep, as long as that finds something often
        enough, and with a quarter of the time at most where it does not; 0: sleep at once.
    :param always: never sleep: the fastest, for a processor of its own.
    :param workers: threads of a device, which share its queues evenly; None: one for each queue.
    :param cpus: processors to run on, the workers in turn; none: wherever the system likes.
    :param numa_node: memory of the workers comes from this node, and without `cpus` they run there; None:
        anywhere.
    :raises DeviceError: a number is out of range, or there is no such node.
    """

    us: int = POLL_US
    always: bool = False
    workers: int | None = None
    cpus: Sequence[int] = ()
    numa_node: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.us <= 1_000_000:
            raise DeviceError(f"polling for {self.us} µs: 0 to 1000000 are possible")
        if self.workers is not None and self.workers < 1:
            raise DeviceError(f"{self.workers} workers: at least one has to be there")
        if missing := set(self.cpus) - os.sched_getaffinity(0):
            raise DeviceError(f"processors {sorted(missing)} are not there, or not for this process")
        if self.numa_node is not None and not self.places(0):
            raise DeviceError(
                f"NUMA node {self.numa_node} is not there, or has no processor for this process"
            )

    def places(self, index: int) -> set[int]:
        """Processors of the worker `index`; none: all."""
        if self.cpus:
            return {self.cpus[index % len(self.cpus)]}
        if self.numa_node is None:
            return set()
        return node_cpus(self.numa_node)


class Workers:
    """The threads of a device, made when they are first needed, until closed.

    An instance makes runners of rings: ``workers(ring)``.
    """

    def __init__(self, queues: int, polling: Polling | None = None) -> None:
        self._polling = Polling() if polling is None else polling
        self._count = min(queues, self._polling.workers or queues)
        self._workers: dict[int, _Worker] = {}

    def __call__(self, ring: "Ring") -> "_Run":
        index = ring.index % self._count
        worker = self._workers.get(index)
        if worker is None:
            worker = self._workers[index] = _Worker(self._polling, index, ring)
        else:
            worker.add(ring)
        return _Run(worker, ring)

    def close(self) -> None:
        """End the threads; their rings are stopped."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()


class _Run:
    # The runner of one ring: its place in a worker.
    def __init__(self, worker: "_Worker", ring: "Ring") -> None:
        self._worker, self._ring = worker, ring

    def stop(self) -> None:
        self._worker.remove(self._ring)

    def nudge(self) -> None:
        self._worker.nudge()


class _Worker:
    # A thread that runs rings. Rings come and go while it pauses, as it does for as long as it has none; only
    # the control plane's thread asks it to.
    def __init__(self, polling: Polling, index: int, first: "Ring") -> None:
        self._polling, self._index = polling, index
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        mode = lib.VH_POLL_ALWAYS if polling.always else lib.VH_POLL_ADAPTIVE
        self._core = ffi.new("struct vh_worker *")
        self._core.stop_fd, self._core.polling = self._stop, mode if polling.us or polling.always else 0
        self._core.poll_ns = polling.us * 1000
        self._take([first])
        self._pausing = self._ending = False
        self._paused, self._resumed, self._ended = (_thread.allocate_lock() for _ in range(3))
        for lock in (self._paused, self._resumed, self._ended):
            lock.acquire()
        try:
            # Not threading.Thread, which takes as long to start as the rest of a handshake.
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            os.close(self._stop)
            raise

    def add(self, ring: "Ring") -> None:
        self._change([*self._rings, ring])

    def remove(self, ring: "Ring") -> None:
        self._change([other for other in self._rings if other is not ring])

    def nudge(self) -> None:
        lib.vh_worker_stop(self._core)

    def close(self) -> None:
        self._ending = True
        if self._rings:
            self.nudge()
        else:
            self._resumed.release()
        self._ended.acquire()
        os.close(self._stop)

    def _change(self, rings: "list[Ring]") -> None:
        if self._rings:
            self._pausing = True
            self.nudge()
            while not self._paused.acquire(timeout=PATIENCE):
                for ring in self._rings:
                    ring.let_go()
        self._take(rings)
        if rings:
            self._resumed.release()

    def _take(self, rings: "list[Ring]") -> None:
        lanes = [ring.cdata for ring in rings if ring.cdata is not None]
        assert len(lanes) == len(rings)
        self._keep = ffi.new("struct vh_lane *[]", lanes), ffi.new("uint64_t[]", 2 * len(lanes) + 1), lanes
        self._core.lane, self._core.poll = self._keep[:2]
        self._core.n = len(lanes)
        # Rings begin with a kick; before it, polling would only keep a processor from who is to send it.
        self._core.skip = max(self._core.skip, 1)
        self._rings = rings

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._ended.release()

    def _serve(self) -> None:
        core, run = self._core, lib.vh_worker_run
        if places := self._polling.places(self._index):
            try:
                os.sched_setaffinity(0, places)
            except OSError as error:  # they were there when the daemon started
                log.warning("worker %d runs anywhere, not on %s: %s", self._index, sorted(places), error)
        if self._polling.numa_node is not None:
            lib.vh_prefer_node(self._polling.numa_node)
        while not self._ending:
            event = run(core)
            if event == lib.VH_W_STOP:
                self._rest()
            else:
                self._attend(self._rings[core.which], event)

    def _attend(self, ring: "Ring", event: int) -> None:
        if event == lib.VH_W_HANDLE:
            ring.handle()
        elif event == lib.VH_W_SERVED:
            ring.attend(self._core.served)
        elif event == lib.VH_W_HEARD:
            ring.heard()
        else:
            ring.fail(f"its kick descriptor has failed: {_reason(self._core.error)}")

    def _rest(self) -> None:
        try:
            os.eventfd_read(self._stop)
        except BlockingIOError:
            pass
        self._core.stop = 0
        if self._pausing:
            self._pausing = False
            self._paused.release()
            self._resumed.acquire()


def _reason(error: int) -> str:
    return os.strerror(error) if error else "the peer has closed it"
