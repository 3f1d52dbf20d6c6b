# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a request costs in instructions of the C core, against recorded figures: times are never compared."""

from pathlib import Path
from typing import Final, NamedTuple

import pytest

from . import counting

pytestmark = pytest.mark.bench


class Count(NamedTuple):
    """Instructions per request of a disk that keeps nothing (3 descriptors, 4 KiB, 64 in a batch)."""

    device: float
    driver: float


# As gcc 12 compiles it and callgrind counts it. What makes it more has to be worth it, and is recorded here.
RECORDED: Final = {
    "split": Count(494.0, 359.4),
    "event-idx": Count(494.0, 359.5),
    "indirect": Count(611.0, 362.4),
    "in-order": Count(509.5, 331.0),
    "regions": Count(530.4, 359.4),  # 64 of them
    "inflight": Count(549.2, 359.4),
    "log": Count(654.3, 359.4),
    "packed": Count(579.9, 348.6),
    "packed event-idx": Count(580.0, 348.9),
    "packed indirect": Count(683.8, 339.5),
    "packed in-order": Count(587.5, 345.3),
    "packed inflight": Count(761.3, 348.6),
    "packed log": Count(740.7, 348.6),
}
RECORDED_BY: Final = "gcc-12"
# The same compiler has little excuse; another one makes other code of the same source.
TOLERANCE: Final = 1.04
TOLERANCE_ELSEWHERE: Final = 1.25
# What a part may cost on top of the ring without it, whatever the compiler.
RATIOS: Final = {
    ("packed", "split"): 1.3,
    ("inflight", "split"): 1.3,
    ("packed inflight", "packed"): 1.4,
    ("regions", "split"): 1.2,
    ("log", "split"): 1.5,
    ("packed log", "packed"): 1.5,
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting.build(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="module")
def counts(program: Path) -> dict[str, Count]:
    return {
        case: Count(*(counting.instructions(program, side, *options(case)) for side in Count._fields))
        for case in RECORDED
    }


def options(case: str) -> list[str]:
    """What to tell the harness; a split ring is what it takes without a word."""
    return [word for word in case.split() if word != "split"]


def test_instructions_per_request(counts: dict[str, Count]) -> None:
    tolerance = TOLERANCE if counting.compiler() == RECORDED_BY else TOLERANCE_ELSEWHERE
    more = [
        f"{case}, {side}: {count:.1f} instructions per request, {recorded:.1f} are recorded"
        for case in RECORDED
        for side, count, recorded in zip(Count._fields, counts[case], RECORDED[case], strict=True)
        if count > tolerance * recorded
    ]
    table = "\n".join(f'    "{case}": Count({c.device:.1f}, {c.driver:.1f}),' for case, c in counts.items())
    assert not more, "\n".join(more) + f"\n\nby {counting.compiler()}, all of it:\n{table}"


def test_what_a_part_of_the_ring_costs(counts: dict[str, Count]) -> None:
    more = [
        f"{case} takes {ratio:.2f} times the instructions of {plain}, more than {limit}"
        for (case, plain), limit in RATIOS.items()
        if (ratio := counts[case].device / counts[plain].device) > limit
    ]
    assert not more, "\n".join(more)


def test_more_work_counts_as_more(counts: dict[str, Count]) -> None:
    # If the counting were of something else, the comparisons above would pass for ever.
    for case in ("indirect", "inflight", "log"):
        assert counts[case].device > counts["split"].device + 20
