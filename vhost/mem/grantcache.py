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

# struct vh_key, as it is in memory: a buffer that a driver uses again has the same.
_Key = bytes

_KEY_SIZE: Final = ffi.sizeof("struct vh_key")
_WRITE: Final = ffi.offsetof("struct vh_key", "write")


def _keys(pieces: Any, n: int, above: int) -> tuple[Any, list[_Key]]:
    # Of the pieces that are to be mapped: which they are, and their keys.
    keys, which = ffi.new("struct vh_key[]", n), ffi.new("uint32_t[]", n)
    size = lib.vh_grants_keys(pieces, n, above, keys, which) * _KEY_SIZE
    content = bytes(ffi.buffer(keys, size))
    return which, [content[at : at + _KEY_SIZE] for at in range(0, size, _KEY_SIZE)]


@final
class _Kept:
    # One mapping: it is unmapped as a whole, so it is kept or dropped as a whole.
    __slots__ = ("keys", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.keys: list[_Key] = []  # of what is in it


@final
class GrantCache:
    """Bounded; safe to use from several threads.

    :param limit: pages that are kept at most. What a batch uses stays mapped besides until it is done.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._kept: OrderedDict[_Kept, None] = OrderedDict()  # the most recently used last
        self._where: dict[_Key, tuple[_Kept, int]] = {}  # and the address of its first page
        self._pages = 0

    def find(self, pieces: Any, n: int, above: int) -> list[object]:
        """Fill in the address of each piece of more than `above` bytes that is kept; returns their owners."""
        which, keys = _keys(pieces, n, above)
        pages = ffi.new("uint64_t[]", len(keys))
        owners: list[object] = []
        last = None
        with self._lock:
            for index, key in enumerate(keys):
                found = self._where.get(key)
                if found is None:
                    continue
                kept, pages[index] = found
                if kept is not last:
                    self._kept.move_to_end(kept)
                    owners.append(kept.view)
                    last = kept
        lib.vh_grants_kept(pieces, len(keys), which, pages)
        return owners

    def keep(self, pieces: Any, n: int, write: int, view: memoryview) -> None:
        """Keep what has been mapped for a batch in one direction."""
        pages = len(view) // PAGE_SIZE
        if pages > self._limit:
            return
        kept = _Kept(view)
        which, keys = _keys(pieces, n, 0)
        with self._lock:
            while self._kept and self._pages + pages > self._limit:
                self._drop(next(iter(self._kept)))
            self._kept[kept] = None
            self._pages += pages
            for index, key in zip(which, keys, strict=False):
                if key[_WRITE] == write:
                    host = int(ffi.cast("uintptr_t", pieces[index].host))
                    self._where[key] = kept, host - host % PAGE_SIZE
                    kept.keys.append(key)

    def clear(self) -> None:
        """Keep nothing any more."""
        with self._lock:
            while self._kept:
                self._drop(next(iter(self._kept)))

    def _drop(self, kept: _Kept) -> None:
        del self._kept[kept]
        self._pages -= len(kept.view) // PAGE_SIZE
        for key in kept.keys:
            found = self._where.get(key)
            if found is not None and found[0] is kept:
                del self._where[key]
