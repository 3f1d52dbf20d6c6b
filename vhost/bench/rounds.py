# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Alternating rounds: every backend in turn, forwards and backwards, under each condition."""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from vhost.errors import VhostError

from .connection import LoadError, Run
from .known import IMAGE, image_folder
from .load import Load
from .peer import Peer, PeerError, Running
from .python_load import PythonLoad
from .workload import Access, Workload

__all__ = ("Bench", "Condition", "Round")

_SAMPLE: Final = 64  # one of so many requests has its data compared
_CONNECT: Final = 5.0  # seconds: some backends listen anew after each connection
_NOT_YET: Final = (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET)


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
        with ExitStack() as stack:
            prefix = f"vhost-bench-{os.getpid()}-"
            folder = Path(stack.enter_context(TemporaryDirectory(prefix=prefix)))
            disks = Path(stack.enter_context(TemporaryDirectory(prefix=prefix, dir=image_folder())))
            running = self._start(stack, folder, disks)
            if self.driver_cpu is not None:
                stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
                os.sched_setaffinity(0, {self.driver_cpu})
            total = len(self.conditions) * self.rounds * len(running)
            for done, (condition, number, peer) in enumerate(self._turns(running)):
                if peer.peer.name in self.failed:
                    continue
                self.tell(done, total, f"{peer.peer.name}, depth {condition.depth}, {condition.mode}")
                try:
                    self.results.append(self._turn(peer, condition, number))
                except (VhostError, OSError) as error:
                    self.failed[peer.peer.name] = self._words(peer, error)

    def _start(self, stack: ExitStack, folder: Path, disks: Path) -> list[Running]:
        running = []
        for peer in self.peers:
            # Who serves a disk locks it, so each has its own.
            image = disks / f"{peer.name}.img" if IMAGE in " ".join(peer.command) else None
            try:
                running.append(stack.enter_context(Running.start(peer, folder, self.server_cpu, image)))
            except PeerError as error:
                self.failed[peer.name] = str(error).removeprefix(f"{peer.name}: ")
        return running

    def _turns(self, running: list[Running]) -> Iterator[tuple[Condition, int, Running]]:
        for condition in self.conditions:
            for number in range(self.rounds):
                for peer in running if number % 2 == 0 else reversed(running):
                    yield condition, number, peer

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
                    run = _with_faults_of(load.check_writes(), run)
        finally:
            running.pause()
        return Round(running.peer.name, condition, number, run, spent)

    def _connect(self, running: Running, condition: Condition) -> Load | PythonLoad:
        own: dict[str, Any] = {word.replace("-", "_"): True for word in running.peer.own}
        workload = replace(self.workload, **own)
        sample = _SAMPLE if running.peer.verify else 0
        kind = PythonLoad if workload.python else Load
        deadline = time.monotonic() + _CONNECT
        while True:
            try:
                return kind(running.socket, workload, condition.depth, poll=condition.poll, sample=sample)
            except OSError as error:
                if error.errno not in _NOT_YET or running.end() or time.monotonic() > deadline:
                    raise
            time.sleep(0.005)

    def _words(self, running: Running, error: Exception) -> str:
        # A connection that closes is seen a little before the process is gone.
        deadline = time.monotonic() + 0.5
        while (end := running.end()) is None and time.monotonic() < deadline:
            if isinstance(error, LoadError) and "nothing came back" in str(error):
                break
            time.sleep(0.01)
        return f"{error}; {end}" if end else str(error)


def _with_faults_of(check: Run, run: Run) -> Run:
    """`run`, marked by what a check after it found."""
    return replace(
        run,
        sampled=check.sampled,
        faults=run.faults + check.faults,
        fault=run.fault or check.fault,
    )


def cpu_time(pid: int) -> int | None:
    """CPU time of all threads of a process that run now, in ns; None if the kernel does not tell."""
    total, found = 0, False
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[0])
            found = True
        except (OSError, ValueError, IndexError):
            pass  # the thread has ended
    return total if found else None
