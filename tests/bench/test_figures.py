# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""From rounds to figures, tables and charts, without a backend."""

import os
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import pytest

from vhost._core import lib
from vhost.bench import Access, Condition, Peer, Round, Workload, chart, figures, markdown, marks, plain
from vhost.bench.connection import Run
from vhost.bench.histogram import percentile
from vhost.bench.turns import cpu_time

RUN = Run(
    requests=1000,
    bytes=64000,
    seconds=1.0,
    p50=2000.0,
    p99=9000.0,
    p999=10000.0,
    driver_ns=100.0,
    kicks=10,
    calls=20,
    sleeps=20,
    sampled=0,
    lost=0,
    faults=0,
    fault="",
)
EVENT = Condition(32, False)


def rounds(
    peer: str, rates: list[int], server: float | None = 500.0, condition: Condition = EVENT
) -> list[Round]:
    return [
        Round(peer, condition, number, replace(RUN, requests=rate), server)
        for number, rate in enumerate(rates)
    ]


def test_medians_and_quartiles() -> None:
    (figure,) = figures(rounds("a", [100, 500, 300, 200, 400]))
    assert (figure.low, figure.rate, figure.high) == (200, 300, 400)
    assert (figure.rounds, figure.rate_ratio, figure.server_ns) == (5, None, 500)
    assert figure.sound


def test_one_round_has_no_spread() -> None:
    (figure,) = figures(rounds("a", [100]))
    assert (figure.low, figure.rate, figure.high) == (100, 100, 100)


def test_ratios_are_taken_within_rounds() -> None:
    # The machine slows down by and by; b is always twice as quick, whatever the medians say.
    slower = [800, 400, 200, 100]
    first = rounds("a", slower)
    second = rounds("b", [2 * rate for rate in slower], server=250.0)[1:]
    _, figure = figures([*first, *second])
    assert figure.rate_ratio == pytest.approx(2.0)
    assert figure.server_ratio == pytest.approx(0.5)


def test_cpu_time_has_that_of_threads_that_have_ended() -> None:
    def work() -> None:
        while time.thread_time() < 0.05:
            pass

    before = cpu_time(os.getpid())
    assert before is not None
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    after = cpu_time(os.getpid())
    assert after is not None
    assert after - before >= 50e6


def test_cpu_time_of_a_process_that_has_ended() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert cpu_time(child.pid) is None


def test_cpu_time_that_nobody_knows() -> None:
    a, b = figures([*rounds("a", [100], server=None), *rounds("b", [100])])
    assert (a.server_ns, a.server_ratio, b.server_ratio) == (None, None, None)
    assert "?" in plain([a, b])[1]


def test_figures_that_must_not_be_trusted_are_marked() -> None:
    bad = replace(RUN, faults=3, fault="status 1 for sector 8", lost=2)
    found = figures([*rounds("good", [100]), Round("bad", EVENT, 0, bad, 1.0)])
    assert [figure.sound for figure in found] == [True, False]
    assert "bad (!)" in plain(found)[2]
    assert "| bad (!) |" in markdown(found)[3]
    (mark,) = marks(found)
    assert mark.startswith("(!) bad, depth 32, event: 3 wrong requests, the first with status 1 for sector 8")
    assert mark.endswith(" and 2 lost interrupts")


def test_conditions_are_set_apart_in_the_order_in_which_they_came() -> None:
    poll = Condition(1, True)
    found = figures([*rounds("a", [5]), *rounds("b", [5]), *rounds("a", [7], condition=poll)])
    assert [(figure.peer, figure.condition.depth) for figure in found] == [("a", 32), ("b", 32), ("a", 1)]
    assert plain(found)[3] == ""


def test_chart_shows_every_peer_and_condition() -> None:
    peers = ["one", "<two> & co", *(f"peer {i}" for i in range(10))]
    results = [
        r
        for depth in (1, 8, 32, 64, 128)
        for p in peers
        for r in rounds(p, [5, 6], None if depth == 8 else 9.0)
    ]
    results = [
        replace(r, condition=Condition(depth, False))
        for r, depth in zip(
            results, [d for d in (1, 8, 32, 64, 128) for _ in range(2 * len(peers))], strict=True
        )
    ]
    root = ET.fromstring(chart(figures(results), "a < b"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(peers) | {"a < b"} <= set(texts)
    assert texts.count("depth 64, event") == 2  # requests/s, and CPU time
    width = float(root.get("width", 0))
    assert all(float(e.get("x", 0)) < width for e in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize("peers", [1, 3, 4, 7, 12])
def test_numbers_above_bars_do_not_touch(peers: int) -> None:
    results = [
        replace(r, run=replace(r.run, requests=979_000 * r.run.requests))
        for depth in (1, 32)
        for i in range(peers)
        for r in rounds(f"peer {i}", [10, 10], condition=Condition(depth, False))
    ]
    root = ET.fromstring(chart(figures(results), "t"))
    numbers = [e for e in root.iter("{http://www.w3.org/2000/svg}text") if e.get("font-size") == "10"]
    assert len(numbers) == 4 * peers
    places = sorted((float(e.get("y", 0)), float(e.get("x", 0)), len(e.text or "")) for e in numbers)
    for (y, left, n), (below, right, m) in pairwise(places):
        assert below != y or right - left > 6 * (n + m) / 2  # some six pixels for a character


def test_chart_of_nothing_but_zeros() -> None:
    ET.fromstring(chart(figures([replace(r, run=replace(RUN, requests=0)) for r in rounds("a", [1])]), "t"))


def test_percentiles_are_as_exact_as_their_buckets() -> None:
    counts = [0] * lib.VH_BENCH_BUCKETS
    assert percentile(counts, 0.5) == 0
    counts[10] = 98
    counts[lib.VH_BENCH_SUB + 3] = 2  # the first bucket above 64 that holds 67
    assert percentile(counts, 0.5) == 10
    assert percentile(counts, 0.99) == pytest.approx(67.5)


@pytest.mark.parametrize(
    ("text", "device", "message"),
    [
        ("", "blk", "a peer is NAME=COMMAND"),
        ("a/b=c @SOCKET@", "blk", "a peer is NAME=COMMAND"),
        ("nobody", "blk", "'nobody' is none of vhost-blk"),
        ("vhost-blk", "net", "'vhost-blk' is none of none"),
        ("a=b", "blk", "the command does not say where @SOCKET@ goes"),
        ("a:fast=b @SOCKET@", "blk", "unknown flag 'fast'"),
        ("a:spin=@/run/x", "blk", "only a peer that is started here"),
        ("a=b '@SOCKET@", "blk", "No closing quotation"),
    ],
)
def test_peers_that_are_none(text: str, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Peer.parse(text, device)


def test_peers() -> None:
    assert Peer.parse("a:spin=b -s @SOCKET@", "rng") == Peer("a", ("b", "-s", "@SOCKET@"), spin=True)
    assert Peer.parse("a:verify=@/run/x.sock", "blk") == Peer("a", path="/run/x.sock", verify=True)
    # A disk that is made for a peer has what is compared.
    assert Peer.parse("a=b @SOCKET@ @IMAGE@", "blk").verify
    assert Peer.parse("vhost-blk", "blk").verify
    assert not Peer.parse("a=@SOCKET@", "blk").verify
    # The same device twice has two names.
    twice = Peer.parse("vhost-blk", "blk"), Peer.parse("vhost-blk:indirect", "blk")
    assert [peer.name for peer in twice] == ["vhost-blk", "vhost-blk-indirect"]
    assert [peer.own for peer in twice] == [(), ("indirect",)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "requests of 0 bytes"),
        ({"size": 1000}, "its sectors have 512"),
        ({"queue_size": 100}, "a power of two"),
        ({"access": Access.FILL}, "a load of blk is one of random, read, write, not fill"),
        ({"regions": 510}, "510 memory regions"),
    ],
)
def test_loads_that_cannot_be(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Workload.of("blk"), **change)  # type: ignore[arg-type]


def test_ring_that_is_too_small() -> None:
    disk = replace(Workload.of("blk"), queue_size=128)
    assert disk.entries(42) == 128
    with pytest.raises(ValueError, match="depth 43 takes 129 entries of the ring; it has 128"):
        disk.entries(43)
    assert replace(disk, indirect=True).entries(128) == 128
    assert Workload.of("blk").entries(128) == 512
