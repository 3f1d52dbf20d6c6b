# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Latencies, counted in buckets whose width grows with the value."""

from collections.abc import Sequence
from typing import Final

from vhost._core import lib

__all__ = ("percentile",)

_SUB: Final[int] = lib.VH_BENCH_SUB
_BITS: Final = _SUB.bit_length() - 1


def _middle(bucket: int) -> float:
    if bucket < _SUB:
        return float(bucket)
    power, part = bucket // _SUB + _BITS - 1, bucket % _SUB
    return float((1 << power) + (part + 0.5) * (1 << (power - _BITS)))


def percentile(counts: Sequence[int], part: float) -> float:
    """The value below which `part` (0 to 1) of all that was counted lies, in ticks; 0 if nothing was."""
    want, seen = sum(counts) * part, 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= want:
            return _middle(bucket)
    return 0.0
