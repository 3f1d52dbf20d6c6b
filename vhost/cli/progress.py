# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""How far a transfer is: a bar on a terminal, four lines anywhere else."""

import sys
import time
from types import TracebackType
from typing import Self

__all__ = ("Progress", "Turns", "rate")

_WIDTH = 32
_QUARTERS = 4
_REDRAW = 0.05


class Progress:
    """Shows the progress of `total` bytes while its ``with`` block runs, on standard output.

    :param label: what is going on.
    """

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._done = 0
        self._bar = sys.stdout.isatty()
        self._shown = 0.0  # time of the last redraw, or the last quarter printed
        self._start = time.monotonic()

    def add(self, n: int) -> None:
        """`n` more bytes are done."""
        self._done += n
        last = self._done >= self._total
        if self._bar:
            now = time.monotonic()
            if last or now - self._shown >= _REDRAW:
                self._shown = now
                self._draw()
        elif (quarter := _QUARTERS * self._done // self._total) > self._shown:
            self._shown = quarter
            print(self._text(), flush=True)

    def _draw(self) -> None:
        print(f"\r  {_bar(self._done, self._total)}{self._text()}", end="", flush=True)

    def _text(self) -> str:
        speed = rate(self._done, time.monotonic() - self._start)
        mib, total = self._done >> 20, self._total >> 20
        return f"  {self._label} {100 * self._done // self._total:3d} %  {mib}/{total} MiB  {speed:>12}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            print(flush=True)


class Turns:
    """Shows which of many turns it is, on standard error if that is a terminal, and leaves nothing there."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()

    def show(self, done: int, total: int, what: str) -> None:
        """`done` turns of `total` are over, the next is about `what`."""
        if self._on:
            text = f"\r  {_bar(done, total)}  {done}/{total}  {what}\x1b[K"
            print(text, end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for other output."""
        if self._on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _bar(done: int, total: int) -> str:
    full = _WIDTH * done // total
    return f"[{'#' * full}{'.' * (_WIDTH - full)}]"


def rate(n: int, seconds: float) -> str:
    """`n` bytes in `seconds`, for people."""
    speed = n / max(seconds, 1e-9)
    for unit in ("B/s", "kB/s", "MB/s"):
        if speed < 1000:
            return f"{speed:.0f} {unit}"
        speed /= 1000
    return f"{speed:.2f} GB/s"
