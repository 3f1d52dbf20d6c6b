# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A load from Python, as a program makes it that calls :func:`vhost.connect`: what such a user gets."""

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from vhost.frontend.queue import FrontendQueue
from vhost.frontend.ring import Completion
from vhost.virtio.blk import HEADER, BlkRequest

from .connection import HANG, Connection, LoadError, Run
from .workload import SECTOR, Access, Workload

__all__ = ("PythonLoad",)

_SEED: Final = 1  # of random places: the same in every run
_STATUS: Final = 1  # bytes
_FILLED: Final = 16  # bytes that are looked at of those that a device makes up


@dataclass(slots=True)
class _Tally:
    """What came back so far, in a run."""

    done: int = 0
    bytes: int = 0
    kicks: int = 0
    sleeps: int = 0
    sampled: int = 0
    faults: int = 0
    fault: str = ""
    latencies: Counter[int] = field(default_factory=Counter)

    def wrong(self, words: str) -> None:
        self.fault = self.fault or words
        self.faults += 1


class PythonLoad(Connection):
    """Keeps `depth` reads in flight by :meth:`FrontendQueue.submit`, a batch for each time that something
    came back. Parameters as of :class:`vhost.bench.load.Load`; with `sample`, all data is compared.
    """

    def __init__(self, path: str, workload: Workload, depth: int, *, poll: bool, sample: int = 0) -> None:
        super().__init__(path, workload, depth)
        self._ring = self.session.ring(workload.queue)
        self._queue = FrontendQueue(self._ring, HANG)
        self._poll, self._compare = poll, bool(sample)
        self._random = random.Random(_SEED)
        self._sector = 0
        self._disk = workload.device == "blk"
        self._flying: dict[int, tuple[int, int]] = {}  # by token: when it was sent, sector

    def run(self, seconds: float, *, limit: int = 0) -> Run:
        """Keep the requests in flight for so many seconds, or until `limit` of them are done.

        :raises LoadError: nothing came back; this connection is of no more use.
        :raises VhostError, OSError: as the methods of a queue do.
        """
        tally, left = _Tally(), limit or 1 << 62
        busy, start = time.thread_time_ns(), time.perf_counter_ns()
        end = start + int(seconds * 1e9)
        left -= self._send(min(self.depth, left), tally, start)
        while self._flying:
            done = self._arrived(tally)
            now = time.perf_counter_ns()
            for completion in done:
                self._check(completion, now, tally)
            if now < end:
                left -= self._send(min(len(done), left), tally, now)
        stop, spent = time.perf_counter_ns(), time.thread_time_ns() - busy
        p50, p99, p999 = (_percentile(tally.latencies, part) for part in (0.5, 0.99, 0.999))
        return Run(
            requests=tally.done,
            bytes=tally.bytes,
            seconds=(stop - start) / 1e9,
            p50=p50,
            p99=p99,
            p999=p999,
            driver_ns=spent / max(tally.done, 1),
            kicks=tally.kicks,
            calls=tally.sleeps,
            sleeps=tally.sleeps,
            sampled=tally.sampled,
            lost=0,
            faults=tally.faults,
            fault=tally.fault,
        )

    def _send(self, n: int, tally: _Tally, now: int) -> int:
        if not n:
            return 0
        size, submit = self.workload.size, self._queue.submit
        for _ in range(n):
            sector = self._place() if self._disk else 0
            if self._disk:
                header = HEADER.pack(BlkRequest.IN, 0, sector)
                token = submit(header, (size, _STATUS), publish=False)
            else:
                token = submit(b"", size, publish=False)
            self._flying[token] = now, sector
        driver = self._ring.vring.driver
        if driver.publish():
            tally.kicks += 1
            self._ring.vring.kick()
        return n

    def _place(self) -> int:
        step = self.workload.size // SECTOR
        if self.workload.access is Access.RANDOM:
            return int(self._random.random() * (self.sectors // step)) * step
        sector = self._sector
        self._sector = (sector + step) % self.sectors
        return sector

    def _arrived(self, tally: _Tally) -> list[Completion]:
        done = self._queue.completed()
        deadline = 0.0
        while not done:
            if not self._poll:
                tally.sleeps += 1
                try:
                    self._queue.make_room()
                except TimeoutError:
                    raise LoadError(self._hung(tally)) from None
            elif not deadline:
                deadline = time.monotonic() + HANG
            elif time.monotonic() > deadline:
                raise LoadError(self._hung(tally))
            done = self._queue.completed()
        return done

    @staticmethod
    def _hung(tally: _Tally) -> str:
        return f"nothing came back for {HANG:g} s, after {tally.done} requests"

    def _check(self, completion: Completion, now: int, tally: _Tally) -> None:
        began, sector = self._flying.pop(completion.token)
        tally.latencies[now - began] += 1
        tally.done += 1
        size, written = self.workload.size, completion.written
        if not self._disk:
            tally.bytes += written
            if not written:
                tally.wrong(f"a used length of 0 instead of 1 to {size}")
            elif self._compare and written >= _FILLED:
                tally.sampled += 1
                if not any(completion.data[:_FILLED]):
                    tally.wrong("a buffer that was left as it had been")
            return
        tally.bytes += size
        data = completion.data
        if status := data[size]:
            tally.wrong(f"status {status} for sector {sector}")
        elif written != size + _STATUS:
            tally.wrong(f"a used length of {written} instead of {size + _STATUS}")
        elif self._compare:
            tally.sampled += 1
            if (word := int.from_bytes(data[:8], "little")) != sector:
                tally.wrong(f"sector {sector} began with {word:#x}, not with its number")


def _percentile(latencies: Counter[int], part: float) -> float:
    """The latency below which `part` (0 to 1) of all requests lie, in ns."""
    want, seen = latencies.total() * part, 0
    for latency in sorted(latencies):
        seen += latencies[latency]
        if seen >= want:
            return float(latency)
    return 0.0
