# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A load from C: buffers laid out for its loop, and what that loop found."""

import os
import select
import time
from functools import cache
from typing import Any, Final

from vhost._core import ffi, lib
from vhost.frontend.vring import drain

from .connection import HANG, Connection, LoadError, Run
from .histogram import percentile
from .slots import Slots
from .workload import NET_HEADER, SECTOR, Access, Workload

__all__ = ("Load",)

_SEED: Final = 88172645463325252  # of random places: the same in every run
_KIND: Final = {
    Access.READ: lib.VH_BENCH_BLK_READ,
    Access.RANDOM: lib.VH_BENCH_BLK_READ,
    Access.WRITE: lib.VH_BENCH_BLK_WRITE,
    Access.FILL: lib.VH_BENCH_FILL,
    Access.SEND: lib.VH_BENCH_TAKE,
    Access.RECEIVE: lib.VH_BENCH_FILL,
}
# Bytes that a device writes at least where it decides how many it does.
_LEAST: Final = {Access.FILL: 1, Access.RECEIVE: NET_HEADER}
_SALT: Final = 1 << 63
_FILL: Final = 60.0  # seconds, for all of a disk


class Load(Connection):
    """A load from C.

    :param poll: spin; else sleep until the device calls.
    :param sample: compare the data of every so many requests, 0: of none.
    :raises VhostError, OSError: as :func:`vhost.connect` does.
    """

    def __init__(self, path: str, workload: Workload, depth: int, *, poll: bool, sample: int = 0) -> None:
        super().__init__(path, workload, depth)
        try:
            self._vring = self.session.ring(workload.queue).vring
            self._epoll = select.epoll()
            try:
                self._l = self._lay_out(poll, sample)
            except BaseException:
                self._epoll.close()
                raise
        except BaseException:
            self.session.close()
            raise

    def _lay_out(self, poll: bool, sample: int) -> Any:
        work, depth, vring = self.workload, self.depth, self._vring
        self._slots = Slots(self.session.ram, work, depth)
        arrays = {
            "owner": ffi.new("uint16_t[]", vring.size),
            "idle": ffi.new("uint16_t[]", depth),
            "used": ffi.new("struct vh_used[]", depth),
            "histogram": ffi.new("uint64_t[]", lib.VH_BENCH_BUCKETS),
        }
        self._keep = arrays
        self._epoll.register(vring.call, select.EPOLLIN | select.EPOLLET)
        self._epoll.register(vring.err, select.EPOLLIN)
        self._epoll.register(self.session.link.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        return ffi.new(
            "struct vh_bench *",
            {
                **arrays,
                "driver": vring.driver.cdata,
                "slot": self._slots.cdata,
                "depth": depth,
                "kind": _KIND[work.access],
                "poll": poll,
                "random": work.access is Access.RANDOM,
                "min_length": _LEAST.get(work.access, 0),
                "sample": sample,
                "sectors": self.sectors,
                "kick_fd": vring.kick_fd,
                "call_fd": vring.call,
                "epoll_fd": self._epoll.fileno(),
                "hang": int(HANG * tick_rate()),
                "seed": _SEED,
            },
        )

    # ---- load ----------------------------------------------------------------------------------------------

    def run(self, seconds: float, *, limit: int = 0) -> Run:
        """Keep the requests in flight for so many seconds, or until `limit` of them are done.

        :raises LoadError: it could not go on; this connection is of no more use.
        """
        load, rate = self._l, tick_rate()
        ffi.memmove(load.histogram, bytes(8 * lib.VH_BENCH_BUCKETS), 8 * lib.VH_BENCH_BUCKETS)
        load.ticks, load.limit = int(seconds * rate), limit
        drain(self._vring.call)
        before = time.thread_time_ns()
        end = lib.vh_bench_run(load)
        busy = time.thread_time_ns() - before
        if end == lib.VH_BENCH_INTERRUPTED:
            raise InterruptedError("a signal came")
        if end != lib.VH_BENCH_OK:
            raise LoadError(self._why(end))
        counts = ffi.unpack(load.histogram, lib.VH_BENCH_BUCKETS)
        p50, p99, p999 = (percentile(counts, part) / rate * 1e9 for part in (0.5, 0.99, 0.999))
        return Run(
            requests=load.done,
            bytes=load.bytes,
            seconds=load.elapsed / rate,
            p50=p50,
            p99=p99,
            p999=p999,
            driver_ns=busy / max(load.done, 1),
            kicks=load.kicks,
            calls=self._calls(),
            sleeps=load.sleeps,
            sampled=load.sampled,
            lost=load.lost,
            faults=load.faults,
            fault=self._fault(),
        )

    def number_sectors(self, first: int, last: int) -> int:
        """Write its number to the beginning of each sector from `first`, or a little before it, to `last`.

        :returns: the sector behind those: whole requests are made.
        :raises LoadError: the disk does not take it, or not in a minute.
        """
        load, step = self._l, self.workload.size // SECTOR
        first -= first % step
        count = (last - first) // step
        load.salt, load.random, load.sample, load.next_sector = 0, 0, 1, first
        run = self.run(_FILL, limit=count)
        if run.faults:
            raise LoadError(f"its disk cannot be filled: {run.fault}")
        if run.requests < count:
            raise LoadError(
                f"its disk could not be filled in {_FILL:g} s: {run.requests} of {count} requests"
            )
        return first + count * step

    def check_writes(self) -> Run:
        """Write a few requests with data of their own, and read them back.

        :returns: the run of the reads, with the faults of both.
        """
        load, work = self._l, self.workload
        saved = load.kind, load.sample, load.salt, load.random
        limit = min(4 * self.depth, self.sectors // (work.size // SECTOR))
        try:
            load.salt, load.random, load.sample = _SALT, 0, 1
            self._direct(lib.VH_BENCH_BLK_WRITE)
            load.next_sector = 0
            written = self.run(HANG, limit=limit)
            self._direct(lib.VH_BENCH_BLK_READ)
            load.next_sector = 0
            return self.run(HANG, limit=limit).with_faults_of(written)
        finally:
            load.kind, load.sample, load.salt, load.random = saved
            self._direct(load.kind)

    def _direct(self, kind: int) -> None:
        self._l.kind = kind
        self._slots.turn(reads=kind == lib.VH_BENCH_BLK_READ)

    def _calls(self) -> int:
        try:
            return os.eventfd_read(self._vring.call)
        except BlockingIOError:
            return 0

    def _why(self, end: int) -> str:
        load = self._l
        if end == lib.VH_BENCH_HUNG:
            return f"nothing came back for {HANG:g} s, after {load.done} requests"
        if end == lib.VH_BENCH_GONE:
            return f"it closed the connection, or its ring, after {load.done} requests"
        if end == lib.VH_BENCH_BAD_USED:
            return f"it returned what is not in flight, after {load.done} requests"
        if end == lib.VH_BENCH_FULL:
            return f"the ring of {self._vring.size} entries does not hold {self.depth} requests"
        return os.strerror(load.info[0])

    def _fault(self) -> str:
        what, (a, b) = self._l.fault, self._l.info
        if what == lib.VH_BENCH_BAD_STATUS:
            return f"status {a} for sector {b}"
        if what == lib.VH_BENCH_BAD_LENGTH:
            right = str(b) if self._exact() else f"{self._l.min_length} to {b}"
            return f"a used length of {a} instead of {right}"
        if what == lib.VH_BENCH_BAD_DATA and self.workload.device != "blk":
            return "a buffer that was left as it had been"
        if what == lib.VH_BENCH_BAD_DATA:
            return f"sector {b} began with {a:#x}, not with its number"
        return ""

    def _exact(self) -> bool:
        return self.workload.access in (Access.READ, Access.RANDOM, Access.SEND)

    # ---- the end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection and release guest memory."""
        self._epoll.close()
        self._slots.close()
        del self._l
        super().close()


@cache
def tick_rate() -> float:
    """Ticks of the load generator's clock in a second."""
    start, first = time.perf_counter_ns(), lib.vh_bench_ticks()
    time.sleep(0.02)
    return float((lib.vh_bench_ticks() - first) / (time.perf_counter_ns() - start) * 1e9)
