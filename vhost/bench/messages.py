# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A comparison of what messages of the control plane cost, and its figures."""

import socket
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vhost.errors import VhostError

from .connection import peer_pid
from .control import OPERATIONS, NotOffered, timed
from .load import tick_rate
from .peer import Peer, Running
from .turns import cpu_time, end_of, in_turns, started

__all__ = ("ControlBench", "Cost", "Timing", "costs")


@dataclass(frozen=True, slots=True)
class Timing:
    """One turn of one peer: so many operations, their median and 99th percentile in ns.

    :ivar server_ns: the backend's CPU time for each, with whatever makes it possible again.
    """

    peer: str
    operation: str
    number: int
    count: int
    p50: float
    p99: float
    server_ns: float | None


@dataclass(slots=True)
class ControlBench:
    """A comparison; fields as of :class:`vhost.bench.Bench`.

    :ivar results: what was measured, in order.
    :ivar lacking: by peer and operation, what a backend does not offer.
    """

    peers: Sequence[Peer]
    rounds: int = 9
    seconds: float = 0.2
    warmup: float = 0.05
    server_cpu: int | None = None
    driver_cpu: int | None = None
    tell: Callable[[int, int, str], None] = lambda done, total, what: None
    results: list[Timing] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lacking: dict[tuple[str, str], str] = field(default_factory=dict)

    def run(self) -> None:
        """Measure.

        :raises OSError: there is no room for what is needed.
        """
        with started(self.peers, self.server_cpu, self.driver_cpu, self.failed) as running:
            total = len(OPERATIONS) * self.rounds * len(running)
            for done, (name, number, peer) in enumerate(in_turns(list(OPERATIONS), self.rounds, running)):
                who = peer.peer.name
                if who in self.failed or (who, name) in self.lacking:
                    continue
                self.tell(done, total, f"{who}, {name}")
                peer.resume()
                try:
                    self.results.append(self._turn(peer, name, number))
                except NotOffered as lack:
                    self.lacking[who, name] = str(lack)
                except (VhostError, OSError) as error:
                    self.failed[who] = f"{name}: {end_of(peer, error)}"
                finally:
                    peer.pause()

    def _turn(self, running: Running, name: str, number: int) -> Timing:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(running.socket)
            pid = peer_pid(sock)
        before = cpu_time(pid)
        ticks, total = timed(OPERATIONS[name], running.socket, self.seconds, self.warmup)
        after = cpu_time(pid)
        spent = None if before is None or after is None else (after - before) / total
        ns = sorted(tick / tick_rate() * 1e9 for tick in ticks)
        return Timing(
            running.peer.name,
            name,
            number,
            len(ns),
            statistics.median(ns),
            ns[min(len(ns) * 99 // 100, len(ns) - 1)],
            spent,
        )

    def __str__(self) -> str:
        return "control: handshake with 8 regions and a ring, GET_FEATURES, ADD_MEM_REG to 508 regions"


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians of a peer's turns, in ns, with quartiles; `ratio`: to the first peer, within each round."""

    peer: str
    operation: str
    rounds: int
    p50: float
    low: float
    high: float
    ratio: float | None
    p99: float
    server_ns: float | None


def costs(results: Sequence[Timing]) -> list[Cost]:
    """One for each operation and peer, in the order in which they first came."""
    groups: dict[str, dict[str, list[Timing]]] = {}
    for timing in results:
        groups.setdefault(timing.operation, {}).setdefault(timing.peer, []).append(timing)
    first = results[0].peer if results else ""
    return [
        _cost(timings, peers.get(first, []) if peer != first else [])
        for peers in groups.values()
        for peer, timings in peers.items()
    ]


def _cost(timings: list[Timing], first: list[Timing]) -> Cost:
    medians = [timing.p50 for timing in timings]
    low, middle, high = (
        statistics.quantiles(medians, n=4, method="inclusive") if len(medians) > 1 else medians * 3
    )
    there = {timing.number: timing.p50 for timing in first}
    ratios = [timing.p50 / there[timing.number] for timing in timings if timing.number in there]
    servers = [timing.server_ns for timing in timings if timing.server_ns is not None]
    return Cost(
        timings[0].peer,
        timings[0].operation,
        len(timings),
        middle,
        low,
        high,
        statistics.median(ratios) if ratios else None,
        statistics.median(timing.p99 for timing in timings),
        statistics.median(servers) if servers else None,
    )
