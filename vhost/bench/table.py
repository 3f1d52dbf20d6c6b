# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Figures as a table: for a terminal, and in Markdown."""

from collections.abc import Sequence
from typing import Final

from .figures import Figure

__all__ = ("plain", "markdown", "marks")

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
    widths = [max(map(len, column)) for column in zip(_HEADS, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if i in _LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    lines, last = [line(_HEADS)], None
    for figure, row in zip(figures, rows, strict=True):
        if last is not None and last != figure.condition:
            lines.append("")
        last = figure.condition
        lines.append(line(row))
    return lines


def markdown(figures: Sequence[Figure]) -> list[str]:
    """The same as a table in Markdown."""
    rule = ["---" if i in _LEFT else "---:" for i in range(len(_HEADS))]
    return [f"| {' | '.join(row)} |" for row in (_HEADS, rule, *_rows(figures))]


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
