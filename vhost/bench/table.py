# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Figures as a table: for a terminal, and in Markdown."""

from collections.abc import Sequence
from typing import Final

from .figures import Figure
from .messages import Cost

__all__ = ("plain", "markdown", "marks", "control_plain", "control_markdown")

_HEADS: Final = (
    "peer",
    "depth",
    "mode",
    "requests/s",
    "quartiles",
    "ratio",
    "server ns",
    "ratio",
    "driver ns",
    "p50 us",
    "p99 us",
    "calls",
    "compared",
)
_LEFT: Final = (0, 2)  # columns of words
_COST_HEADS: Final = ("peer", "operation", "us", "quartiles", "ratio", "p99 us", "server us")
_COST_LEFT: Final = (0, 1)


def _rows(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    return [
        (
            figure.peer + ("" if figure.sound else " (!)"),
            str(figure.condition.depth),
            figure.condition.mode,
            f"{figure.rate:,.0f}",
            f"{_short(figure.low)}-{_short(figure.high)}",
            _ratio(figure.rate_ratio),
            "?" if figure.server_ns is None else f"{figure.server_ns:,.0f}",
            _ratio(figure.server_ratio),
            f"{figure.driver_ns:,.0f}",
            f"{figure.p50 / 1000:,.2f}",
            f"{figure.p99 / 1000:,.2f}",
            f"{figure.calls:.3f}",
            f"{figure.sampled:,}" if figure.sampled else "-",
        )
        for figure in figures
    ]


def plain(figures: Sequence[Figure]) -> list[str]:
    """Lines for a terminal; conditions are set apart."""
    rows = _rows(figures)
    return _plain(_HEADS, _LEFT, rows, [figure.condition for figure in figures])


def markdown(figures: Sequence[Figure]) -> list[str]:
    """The same as a table in Markdown."""
    return _markdown(_HEADS, _LEFT, _rows(figures))


def control_plain(found: Sequence[Cost]) -> list[str]:
    """Costs of messages as lines for a terminal; operations are set apart."""
    return _plain(_COST_HEADS, _COST_LEFT, _cost_rows(found), [cost.operation for cost in found])


def control_markdown(found: Sequence[Cost]) -> list[str]:
    """The same as a table in Markdown."""
    return _markdown(_COST_HEADS, _COST_LEFT, _cost_rows(found))


def _cost_rows(found: Sequence[Cost]) -> list[tuple[str, ...]]:
    return [
        (
            cost.peer,
            cost.operation,
            f"{cost.p50 / 1000:,.2f}",
            f"{cost.low / 1000:,.2f}-{cost.high / 1000:,.2f}",
            _ratio(cost.ratio),
            f"{cost.p99 / 1000:,.2f}",
            "?" if cost.server_ns is None else f"{cost.server_ns / 1000:,.2f}",
        )
        for cost in found
    ]


def _plain(
    heads: Sequence[str], left: Sequence[int], rows: Sequence[Sequence[str]], groups: Sequence[object]
) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    lines = [line(heads)]
    for i, row in enumerate(rows):
        if i and groups[i] != groups[i - 1]:
            lines.append("")
        lines.append(line(row))
    return lines


def _markdown(heads: Sequence[str], left: Sequence[int], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---" if i in left else "---:" for i in range(len(heads))]
    return [f"| {' | '.join(row)} |" for row in (heads, rule, *rows)]


def marks(figures: Sequence[Figure]) -> list[str]:
    """A sentence for each figure that is marked, and why it must not be trusted."""
    return [
        f"(!) {figure.peer}, depth {figure.condition.depth}, {figure.condition.mode}: "
        + " and ".join(
            part
            for part in (
                f"{figure.faults} wrong requests, the first with {figure.fault}" if figure.faults else "",
                f"{figure.lost} lost interrupts" if figure.lost else "",
            )
            if part
        )
        for figure in figures
        if not figure.sound
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _short(value: float) -> str:
    for unit in ("", "k"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}M"
