# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Mappings of grants that are kept for later batches, up to a number of pages: the least used go first.

A guest that takes a grant back while it is kept has to wait, and Linux's own grant DMA gives up on the device
then: only for guests that reuse their grants, and for nobody who has not asked for it.
"""

from collections import OrderedDict
from threading import Lock
from typing import Any, Final, final

from pyxenctrl import PAGE_SIZE
from vhost._core import ffi, lib

__all__ = ("GrantCache",)

# Domain, first reference, pages, whether it is writable: a buffer that a driver uses again has the same.
_Key = tuple[int, int, int, int]

_REFERENCES: Final = (1 << 63) - PAGE_SIZE


def _key(piece: Any) -> _Key:
    pages = (piece.gpa % PAGE_SIZE + piece.len + PAGE_SIZE - 1) // PAGE_SIZE
    return piece.domid, (piece.gpa & _REFERENCES) // PAGE_SIZE, pages, piece.write


@final
class _Kept:
    # One mapping: it is unmapped as a whole, so it is kept or dropped as a whole.
    __slots__ = ("keys", "view")

    def __init__(self, view: memoryview, keys: dict[_Key, int]) -> None:
        self.view = view
        self.keys = keys  # and where each of them is


@final
class GrantCache:
    """Bounded; safe to use from several threads.

    :param limit: pages that are kept at most. What a batch uses stays mapped besides until it is done.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # the most recently used last
        self._where: dict[_Key, int] = {}
        self._pages = 0
        self._next = 0

    def find(self, pieces: Any, n: int, above: int) -> list[object]:
        """Fill in the address of each piece of more than `above` bytes that is kept; returns their owners."""
        owners: list[object] = []
        with self._lock:
            for index in range(n):
                piece = pieces[index]
                if piece.len <= above:
                    continue
                key = _key(piece)
                number = self._where.get(key)
                if number is None:
                    continue
                kept = self._kept[number]
                self._kept.move_to_end(number)
                piece.host = ffi.cast("void *", kept.keys[key] + piece.gpa % PAGE_SIZE)
                piece.how = lib.VH_KEPT
                owners.append(kept.view)
        return owners

    def keep(self, pieces: Any, n: int, write: int, view: memoryview) -> None:
        """Keep what has been mapped for a batch in one direction."""
        pages = len(view) // PAGE_SIZE
        if pages > self._limit:
            return
        keys = {}
        for index in range(n):
            piece = pieces[index]
            if piece.how == lib.VH_MAP and piece.write == write:
                keys[_key(piece)] = int(ffi.cast("uintptr_t", piece.host)) - piece.gpa % PAGE_SIZE
        with self._lock:
            while self._kept and self._pages + pages > self._limit:
                self._drop(next(iter(self._kept)))
            number, self._next = self._next, self._next + 1
            self._kept[number] = _Kept(view, keys)
            self._pages += pages
            for key in keys:
                self._where[key] = number

    def clear(self) -> None:
        """Keep nothing any more."""
        with self._lock:
            while self._kept:
                self._drop(next(iter(self._kept)))

    def _drop(self, number: int) -> None:
        kept = self._kept.pop(number)
        self._pages -= len(kept.view) // PAGE_SIZE
        for key in kept.keys:
            if self._where.get(key) == number:
                del self._where[key]
