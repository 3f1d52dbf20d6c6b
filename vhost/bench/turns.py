# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Backends that take turns: started together, measured one after the other, forwards and backwards."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from .connection import LoadError
from .known import IMAGE, image_folder
from .peer import Peer, PeerError, Running

__all__ = ("started", "in_turns", "end_of", "cpu_time")

_C = TypeVar("_C")

# CPUCLOCK_SCHED (linux/posix-timers_types.h): the complement of the process id above it names its clock.
_PROCESS_CLOCK = 2


@contextmanager
def started(
    peers: Sequence[Peer], server_cpu: int | None, driver_cpu: int | None, failed: dict[str, str]
) -> Iterator[list[Running]]:
    """Run the peers on one processor, and this thread on another, as far as these are not None.

    :param failed: takes those that did not start, and how.
    :raises OSError: there is no room for what is needed.
    """
    with ExitStack() as stack:
        prefix = f"vhost-bench-{os.getpid()}-"
        folder = Path(stack.enter_context(TemporaryDirectory(prefix=prefix)))
        disks = Path(stack.enter_context(TemporaryDirectory(prefix=prefix, dir=image_folder())))
        running = []
        for peer in peers:
            # Who serves a disk locks it, so each has its own.
            image = disks / f"{peer.name}.img" if IMAGE in " ".join(peer.command) else None
            try:
                running.append(stack.enter_context(Running.start(peer, folder, server_cpu, image)))
            except PeerError as error:
                failed[peer.name] = str(error).removeprefix(f"{peer.name}: ")
        if driver_cpu is not None:
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, {driver_cpu})
        yield running


def in_turns(
    conditions: Sequence[_C], rounds: int, running: Sequence[Running]
) -> Iterator[tuple[_C, int, Running]]:
    """Under each condition: A B C, C B A, ..., with the number of the round."""
    for condition in conditions:
        for number in range(rounds):
            for peer in running if number % 2 == 0 else reversed(running):
                yield condition, number, peer


def end_of(running: Running, error: Exception) -> str:
    """What became of a peer's turn, in words."""
    # A connection that closes is seen a little before the process is gone.
    deadline = time.monotonic() + 0.5
    while (end := running.end()) is None and time.monotonic() < deadline:
        if isinstance(error, LoadError) and "nothing came back" in str(error):
            break
        time.sleep(0.01)
    return f"{error}; {end}" if end else str(error)


def cpu_time(pid: int) -> int | None:
    """CPU time of a process, also of its threads that have ended, in ns; None: it has ended itself."""
    try:
        return time.clock_gettime_ns(~pid << 3 | _PROCESS_CLOCK)
    except OSError:
        return None
