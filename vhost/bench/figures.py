# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What many rounds say together: medians, quartiles, and ratios to the first peer."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .rounds import Condition, Round

__all__ = ("Figure", "figures")


@dataclass(frozen=True, slots=True)
class Figure:
    """A peer under one condition: medians over its rounds; times in ns, of one request.

    :ivar low: lower quartile of `rate`; `high` the upper one.
    :ivar rate_ratio: to the first peer, median of the ratios of rounds with the same number; None for it
        or if there is no round of both.
    :ivar server_ratio: likewise, of `server_ns`.
    """

    peer: str
    condition: Condition
    rounds: int
    rate: float
    low: float
    high: float
    rate_ratio: float | None
    server_ns: float | None
    server_ratio: float | None
    driver_ns: float
    p50: float
    p99: float
    kicks: float
    calls: float
    sampled: int
    lost: int
    faults: int
    fault: str

    @property
    def sound(self) -> bool:
        """No request went wrong and no interrupt was lost."""
        return not self.lost and not self.faults


def figures(results: Sequence[Round]) -> list[Figure]:
    """One figure for each peer and condition, in the order in which they first came."""
    first = results[0].peer if results else ""
    groups: dict[tuple[Condition, str], list[Round]] = {}
    for result in results:
        groups.setdefault((result.condition, result.peer), []).append(result)
    return [
        _figure(group, groups.get((condition, first), []) if peer != first else [])
        for (condition, peer), group in sorted(groups.items(), key=_order(results))
    ]


def _order(results: Sequence[Round]) -> Callable[[tuple[tuple[Condition, str], object]], tuple[int, int]]:
    conditions = list(dict.fromkeys(result.condition for result in results))
    peers = list(dict.fromkeys(result.peer for result in results))
    return lambda item: (conditions.index(item[0][0]), peers.index(item[0][1]))


def _figure(group: list[Round], first: list[Round]) -> Figure:
    rates = [result.rate for result in group]
    low, middle, high = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else rates * 3
    by_number = {result.number: result for result in first}
    pairs = [(result, by_number[result.number]) for result in group if result.number in by_number]
    servers = [result.server_ns for result in group if result.server_ns is not None]
    return Figure(
        peer=group[0].peer,
        condition=group[0].condition,
        rounds=len(group),
        rate=middle,
        low=low,
        high=high,
        rate_ratio=_median([mine.rate / theirs.rate for mine, theirs in pairs if theirs.rate]),
        server_ns=_median(servers),
        server_ratio=_median(
            [
                mine.server_ns / theirs.server_ns
                for mine, theirs in pairs
                if mine.server_ns and theirs.server_ns
            ]
        ),
        driver_ns=statistics.median(result.run.driver_ns for result in group),
        p50=statistics.median(result.run.p50 for result in group),
        p99=statistics.median(result.run.p99 for result in group),
        kicks=statistics.median(result.run.kicks / max(result.run.requests, 1) for result in group),
        calls=statistics.median(result.run.calls / max(result.run.requests, 1) for result in group),
        sampled=sum(result.run.sampled for result in group),
        lost=sum(result.run.lost for result in group),
        faults=sum(result.run.faults for result in group),
        fault=next((result.run.fault for result in group if result.run.fault), ""),
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
