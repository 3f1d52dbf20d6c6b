# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Alternating rounds: every backend in turn, forwards and backwards, under each condition."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from vhost.errors import VhostError

from .connection import NOT_YET, Run
from .load import Load
from .peer import Peer, Running
from .python_load import PythonLoad
from .turns import cpu_time, end_of, in_turns, started
from .workload import SECTOR, Access, Workload

__all__ = ("Bench", "Condition", "Round")

_L = TypeVar("_L", Load, PythonLoad)

_SAMPLE: Final = 64  # one of so many requests has its data compared
_CONNECT: Final = 5.0  # seconds
_FILL_SIZE: Final = 1 << 16  # bytes of the requests that fill a disk
_FILL_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class Condition:
    """How hard a load is: requests in flight, and whether the driver spins or sleeps."""

    depth: int
    poll: bool

    @property
    def mode(self) -> str:
        """``poll`` or ``event``."""
        return "poll" if self.poll else "event"


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of one peer.

    :ivar server_ns: the backend's CPU time per request, None where the kernel does not tell.
    """

    peer: str
    condition: Condition
    number: int
    run: Run
    server_ns: float | None

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.run.requests / self.run.seconds

    @property
    def sound(self) -> bool:
        """Every request came back as it should, and every interrupt that was asked for."""
        return not self.run.faults and not self.run.lost


@dataclass(slots=True)
class Bench:
    """A comparison.

    :ivar seconds: of a round, after `warmup` seconds that do not count.
    :ivar server_cpu: processor on which peers are started; None: wherever the kernel puts them.
    :ivar driver_cpu: likewise, processor of the load.
    :ivar tell: called before each turn with the number of turns so far, of all turns, and what comes.
    """

    workload: Workload
    peers: Sequence[Peer]
    conditions: Sequence[Condition]
    rounds: int = 9
    seconds: float = 0.4
    warmup: float = 0.1
    server_cpu: int | None = None
    driver_cpu: int | None = None
    tell: Callable[[int, int, str], None] = lambda done, total, what: None
    #: What was measured, in order.
    results: list[Round] = field(default_factory=list)
    #: Peers that failed, and how; they get no more turns.
    failed: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Measure.

        :raises OSError: there is no room for what is needed.
        """
        with started(self.peers, self.server_cpu, self.driver_cpu, self.failed) as running:
            total = len(self.conditions) * self.rounds * len(running)
            for done, (condition, number, peer) in enumerate(in_turns(self.conditions, self.rounds, running)):
                if peer.peer.name in self.failed:
                    continue
                if done < len(running) and peer.peer.fill and not self._fill(peer):
                    continue
                self.tell(done, total, f"{peer.peer.name}, depth {condition.depth}, {condition.mode}")
                try:
                    self.results.append(self._turn(peer, condition, number))
                except (VhostError, OSError) as error:
                    self.failed[peer.peer.name] = end_of(peer, error)

    def _fill(self, running: Running) -> bool:
        work = replace(Workload.of("blk"), access=Access.WRITE, size=self.workload.size)
        large, how = replace(work, size=_FILL_SIZE), Condition(_FILL_DEPTH, False)
        running.resume()
        try:
            with self._open(running, Load, work, how, 1) as load:
                end = load.sectors
            done = 0
            if end >= _FILL_SIZE // SECTOR:
                with self._open(running, Load, large, how, 1) as load:
                    done = load.number_sectors(0, end)
            if done < end:
                with self._open(running, Load, work, how, 1) as load:
                    load.number_sectors(done, end)
        except (VhostError, OSError) as error:
            self.failed[running.peer.name] = end_of(running, error)
            return False
        finally:
            running.pause()
        return True

    def _turn(self, running: Running, condition: Condition, number: int) -> Round:
        while True:
            try:
                return self._try(running, condition, number)
            except InterruptedError:
                pass  # a signal that ended nothing, as when this process was stopped: such a round is void

    def _try(self, running: Running, condition: Condition, number: int) -> Round:
        running.resume()
        try:
            with self._connect(running, condition) as load:
                pid = load.peer()
                load.run(self.warmup)
                before = cpu_time(pid)
                run = load.run(self.seconds)
                after = cpu_time(pid)
                spent = None if before is None or after is None else (after - before) / max(run.requests, 1)
                if running.peer.verify and self.workload.access is Access.WRITE and isinstance(load, Load):
                    check = load.check_writes()
                    run = replace(run.with_faults_of(check), sampled=check.sampled)
        finally:
            running.pause()
        return Round(running.peer.name, condition, number, run, spent)

    def _connect(self, running: Running, condition: Condition) -> Load | PythonLoad:
        own: dict[str, Any] = {word.replace("-", "_"): True for word in running.peer.own}
        workload = replace(self.workload, **own)
        sample = _SAMPLE if running.peer.verify or workload.device == "rng" else 0
        if workload.python:
            return self._open(running, PythonLoad, workload, condition, sample)
        return self._open(running, Load, workload, condition, sample)

    @staticmethod
    def _open(running: Running, kind: type[_L], workload: Workload, condition: Condition, sample: int) -> _L:
        deadline = time.monotonic() + _CONNECT
        while True:
            try:
                return kind(running.socket, workload, condition.depth, poll=condition.poll, sample=sample)
            except OSError as error:
                if error.errno not in NOT_YET or running.end() or time.monotonic() > deadline:
                    raise
            time.sleep(0.005)
