# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Discards and zeroes ranges of a disk, however long, a piece at a time.

How long a disk takes for so many bytes is found out: a piece is as large as it can be and still short.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Final, final

from vhost.devices.disk import Disk

__all__ = ("Clearing", "Range")

# Seconds after which others have their turn; a piece is to take less than half of it, and at least an eighth.
_STEP: Final = 0.01
# Bytes of a piece: powers of two, at whose multiples pieces end, so that they cut no block of the disk.
_FIRST: Final = 1 << 18
_LEAST: Final = 1 << 16
_MOST: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a disk that are to be cleared.

    :param zero: they have to read as zeroes then; otherwise they are discarded.
    :param unmap: of zeroes: the space may be given back.
    """

    offset: int
    length: int
    zero: bool
    unmap: bool


@final
class Clearing:
    """Clears ranges of `disk`; from several threads at once."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        # By what is done. What one thread learns another one may overwrite.
        self._pieces: dict[tuple[bool, bool], int] = {}

    def run(self, ranges: Iterable[Range]) -> Iterator[None]:
        """Clear them; yields whenever it has gone on for 10 ms or so.

        :raises OSError: the disk could not.
        """
        began = monotonic()
        for part in ranges:
            offset, end = part.offset, part.offset + part.length
            while offset < end:
                if (start := monotonic()) - began > _STEP:
                    yield
                    began = start = monotonic()
                offset += self._clear(part, offset, end, start)

    def _clear(self, part: Range, offset: int, end: int, start: float) -> int:
        kind = part.zero, part.unmap
        most = min(_MOST, self._disk.zero_most) if part.zero else _MOST
        piece = min(most, self._pieces.get(kind, _FIRST))
        length = min((offset // piece + 1) * piece, end) - offset
        if part.zero:
            self._disk.zero(offset, length, unmap=part.unmap)
        else:
            self._disk.discard(offset, length)
        took = monotonic() - start
        if took > _STEP / 2:
            while took > _STEP / 2 and piece > _LEAST:
                took, piece = took / 2, piece // 2
            self._pieces[kind] = piece
        elif took < _STEP / 8 and length == piece:
            self._pieces[kind] = piece * 2
        return length
