# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What makes this package quick, as ratios within one run: they hold on any machine, whatever else it does.

The bounds leave room: they are there to find that something is gone, not that it is a little less.
"""

import sys
from pathlib import Path

import pytest

from vhost.bench import Bench, Condition, Figure, Peer, Workload, figures

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("unix_build")]
LEVELS = Path(__file__).with_name("levels.py")


def costs(bench: Bench) -> list[float]:
    """The peers' CPU time per request, in their order; all of them served every request as they should."""
    bench.run()
    assert bench.failed == {}
    found = figures(bench.results)
    assert all(map(sound, found))
    assert [figure.peer for figure in found] == [peer.name for peer in bench.peers]
    return [figure.server_ns or 0.0 for figure in found]


def sound(figure: Figure) -> bool:
    return figure.sound and figure.rounds > 0


def level(name: str) -> Peer:
    return Peer(name, (sys.executable, str(LEVELS), name, "@SOCKET@"))


def test_a_batch_at_a_time_is_cheaper_than_a_chain_at_a_time() -> None:
    chain, batch = costs(
        Bench(Workload.of("rng"), [level("chain"), level("batch")], [Condition(128, False)], 5, 0.2)
    )
    assert 0 < 2 * batch < chain


def test_the_data_path_in_c_is_cheaper_than_python() -> None:
    # The former reads a disk, 64 times as much data for each request.
    disk = costs(Bench(Workload.of("blk"), [Peer.parse("vhost-blk", "blk")], [Condition(128, False)], 5, 0.2))
    chain = costs(Bench(Workload.of("rng"), [level("chain")], [Condition(128, False)], 5, 0.2))
    assert 0 < 1.5 * disk[0] < chain[0]


def test_requests_in_flight_share_the_cost_of_waking_up() -> None:
    bench = Bench(
        Workload.of("blk"),
        [Peer.parse("vhost-blk", "blk")],
        [Condition(1, False), Condition(128, False)],
        5,
        0.2,
    )
    bench.run()
    one, many = figures(bench.results)
    assert sound(one)
    assert sound(many)
    assert many.rate > 5 * one.rate
    assert many.calls < 0.2 * one.calls
