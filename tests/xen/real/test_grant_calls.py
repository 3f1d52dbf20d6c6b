# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""How many calls a batch of requests takes to reach granted memory, and what that brings."""

from pathlib import Path
from typing import Any

import pytest

from .bench_grants import program

pytestmark = pytest.mark.timeout(600)

DEPTH = 32
#: The least that mapping the grants of a batch at once must bring, against mapping for each access.
AT_LEAST = 5
# Many short rounds: what is compared is close together then, whatever else the machine does.
ROUNDS, SECONDS = 25, "0.08"


@pytest.fixture(scope="module")
def figures() -> dict[tuple[str, bool], dict[str, Any]]:
    """Of each mode at depth 32, for reads (False) and writes."""
    options = ("--depth", str(DEPTH), "--rounds", str(ROUNDS), "--seconds", SECONDS, "--batches", "0")
    rows = program(*options, json_file=Path("/results/grant-calls.json"))["requests"]
    return {(row["mode"], row["write"]): row for row in rows}


@pytest.fixture(params=[False, True], ids=["reads", "writes"])
def write(request: pytest.FixtureRequest) -> bool:
    """Whether requests write."""
    return bool(request.param)


@pytest.mark.parametrize("mode", ["per access", "map", "copy", "default", "cache"])
def test_a_batch_has_all_requests_that_are_under_way(figures: Any, mode: str, write: bool) -> None:
    row = figures[mode, write]
    assert row["requests"] > DEPTH * ROUNDS
    assert row["requests"] / row["batches"] > DEPTH / 2


def test_per_access_each_piece_is_a_map_call(figures: Any, write: bool) -> None:
    row = figures["per access", write]
    assert row["maps"] == row["unmaps"] == row["pages"] == 3 * row["requests"]
    assert row["copies"] == 0
    assert row["system_calls"] > 12


def test_a_batch_is_one_map_call(figures: Any, write: bool) -> None:
    row = figures["map", write]
    assert row["maps"] == row["unmaps"] == row["batches"] == row["copies"]
    # Of header, data and status, those that the device reads are mapped or those that it writes, not both.
    assert row["pages"] == 2 * row["requests"]
    assert row["segments"] == row["requests"]
    assert row["system_calls"] < 2


@pytest.mark.parametrize("mode", ["copy", "default"])
def test_small_requests_are_copied_without_map_calls(figures: Any, mode: str, write: bool) -> None:
    row = figures[mode, write]
    assert (row["maps"], row["unmaps"]) == (0, 0)
    assert row["copies"] == 2 * row["batches"]
    assert row["segments"] == 3 * row["requests"]


def test_kept_grants_are_mapped_once(figures: Any, write: bool) -> None:
    row = figures["cache", write]
    assert row["pages"] <= 2 * DEPTH
    assert row["copies"] == 2 * row["batches"]


def test_one_map_call_for_a_batch_is_worth_it(figures: Any, write: bool) -> None:
    assert figures["map", write]["ratio"] >= AT_LEAST
