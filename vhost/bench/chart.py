# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Figures as a picture: SVG, written by hand, one panel for each condition."""

import math
from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from .figures import Figure
from .rounds import Condition

__all__ = ("chart",)

# Told apart by people who do not see all colours (Okabe and Ito).
_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#999999")
_INK: Final = "#222222"
_PANEL: Final = 250  # width at least, with its axis
_PLOT: Final = 180  # height of the bars at most
_AXIS: Final = 52  # room for the numbers of an axis
_PAD: Final = 12  # behind the last bar
_GAP: Final = 54  # between rows of panels: the names of conditions
_MARGIN: Final = 24
_TOP: Final = 60
_LEGEND: Final = 24
_ACROSS: Final = 4  # panels of the least width beside each other
_SLOT: Final = 42  # for a bar and the number above it, at least
_WIDTH: Final = 44  # of a bar at most
_TICKS: Final = 4


def chart(figures: Sequence[Figure], title: str) -> str:
    """An SVG document with requests/s and, where it is known, the backend's CPU time per request.

    Bars are medians, with whiskers from the lower to the upper quartile; all axes begin at 0.
    """
    peers = list(dict.fromkeys(figure.peer for figure in figures))
    conditions = list(dict.fromkeys(figure.condition for figure in figures))
    panel = max(_PANEL, _AXIS + _SLOT * len(peers) + _PAD)
    across = min(len(conditions), max(_ACROSS * _PANEL // panel, 1)) or 1
    width = 2 * _MARGIN + max(across * panel, 2 * _PANEL)
    rows = _legend_rows(peers, width)
    parts, y = _heading(title, peers, rows), _TOP + len(rows) * _LEGEND
    kinds = [("requests per second", False)]
    if any(figure.server_ns is not None for figure in figures):
        kinds.append(("server CPU, ns per request (lower is better)", True))
    for label, cpu in kinds:
        parts.append(_text(_MARGIN, y + 14, label, size=13, bold=True))
        y += 34
        for start in range(0, len(conditions), across):
            for i, condition in enumerate(conditions[start : start + across]):
                shown = [figure for figure in figures if figure.condition == condition]
                parts += _panel(_MARGIN + i * panel, y, panel, condition, shown, peers, cpu)
            y += _PLOT + _GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}" '
        f'font-family="sans-serif" role="img">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{y}" fill="#ffffff"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _legend_rows(peers: Sequence[str], width: int) -> list[list[tuple[int, str]]]:
    """Where each name stands: as many in a line as there is room for."""
    rows: list[list[tuple[int, str]]] = [[]]
    x = _MARGIN
    for peer in peers:
        need = 34 + 7 * len(peer)
        if x + need > width - _MARGIN and rows[-1]:
            rows.append([])
            x = _MARGIN
        rows[-1].append((x, peer))
        x += need
    return rows


def _heading(title: str, peers: Sequence[str], rows: Sequence[Sequence[tuple[int, str]]]) -> list[str]:
    parts = [_text(_MARGIN, 32, title, size=15, bold=True)]
    for row, names in enumerate(rows):
        for x, peer in names:
            y = _TOP + row * _LEGEND
            colour = _colour(peers, peer)
            parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
            parts.append(_text(x + 18, y, peer))
    return parts


def _panel(
    x: int,
    y: int,
    width: int,
    condition: Condition,
    figures: Sequence[Figure],
    peers: Sequence[str],
    cpu: bool,
) -> list[str]:
    values = {figure.peer: (figure.server_ns or 0.0) if cpu else figure.rate for figure in figures}
    top = max([*values.values(), *(figure.high for figure in figures if not cpu)], default=0.0) or 1.0
    step = _step(top)
    # A number stands above each bar.
    top = step * math.ceil(top * 1.08 / step)
    left, right, bottom = x + _AXIS, x + width - _PAD, y + _PLOT
    parts = []
    for i in range(round(top / step) + 1):
        at = bottom - _PLOT * i * step / top
        parts.append(f'<path d="M{left} {at:.1f}H{right}" stroke="{"#333333" if i == 0 else "#dddddd"}"/>')
        parts.append(_text(left - 6, at + 4, _number(i * step), anchor="end", colour="#555555"))
    slot = (right - left) / len(peers)
    bar = min(_WIDTH, slot * 0.7)
    for figure in figures:
        middle = left + slot * (peers.index(figure.peer) + 0.5)
        value = values[figure.peer]
        at = bottom - _PLOT * value / top
        name = f"{figure.peer}: {_number(value)}"
        parts.append(
            f'<rect x="{middle - bar / 2:.1f}" y="{at:.1f}" width="{bar:.1f}" height="{bottom - at:.1f}" '
            f'fill="{_colour(peers, figure.peer)}"{"" if figure.sound else _DOUBTFUL}>'
            f"<title>{escape(name)}</title></rect>"
        )
        highest = at
        if not cpu:
            low, highest = (bottom - _PLOT * edge / top for edge in (figure.low, figure.high))
            parts.append(
                f'<path d="M{middle:.1f} {low:.1f}V{highest:.1f}M{middle - 4:.1f} {low:.1f}h8'
                f'M{middle - 4:.1f} {highest:.1f}h8" stroke="{_INK}" fill="none"/>'
            )
        label = _number(value) + ("" if figure.sound else " (!)")
        parts.append(_text(middle, highest - 4, label, size=10, anchor="middle"))
    under = f"depth {condition.depth}, {condition.mode}"
    parts.append(_text((left + right) / 2, bottom + 18, under, anchor="middle"))
    return parts


_DOUBTFUL: Final = ' fill-opacity="0.35" stroke="#cc0000" stroke-dasharray="4 3"'


def _colour(peers: Sequence[str], peer: str) -> str:
    return _COLOURS[peers.index(peer) % len(_COLOURS)]


def _step(top: float) -> float:
    """The distance of the lines of a grid: 1, 2 or 5 times a power of ten."""
    rough = top / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _number(value: float) -> str:
    for unit in ("", " k", " M"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} G"


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    bold: bool = False,
    anchor: str = "",
    colour: str = _INK,
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    where = f' text-anchor="{anchor}"' if anchor else ""
    style = f'font-size="{size}" fill="{colour}"{weight}{where}'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
