# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What all handles and mappings have in common: their lifetimes.

A mapping can only be taken back through the handle that made it, so a handle that is closed earlier stays
open inside until its last mapping is gone. Knows no library.
"""

import enum
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from types import TracebackType
from typing import Final, Self

__all__ = ("PAGE_SIZE", "Protection", "Handle", "Mapper", "Mapping")

#: Bytes of a Xen page, whatever the page size of the host is.
PAGE_SIZE: Final = 4096


class Protection(enum.IntFlag):
    """How memory is mapped: the values of ``mmap``."""

    READ = 1
    WRITE = 2


class Handle(ABC):
    """An open handle of a Xen library. Safe to use from several threads."""

    def __init__(self, pointer: int) -> None:
        self._pointer: int | None = pointer
        self._users = 0  # mappings, and calls under way
        self._closing = False
        # Reentrant: a mapping may be dropped, and so unmapped, by garbage collection at any point.
        self._lock = RLock()

    @property
    def closed(self) -> bool:
        """Whether the handle was closed; mappings may still hold it open inside."""
        return self._closing

    def close(self) -> None:
        """Close the handle, now or with its last mapping. Closing twice is harmless."""
        with self._lock:
            self._closing = True
            self._settle()

    def _settle(self) -> None:
        if self._closing and not self._users and self._pointer is not None:
            pointer, self._pointer = self._pointer, None
            self._close(pointer)

    @contextmanager
    def _live(self) -> Iterator[int]:
        # The pointer, for a call: it stays valid until the call is over, whoever closes the handle meanwhile.
        with self._lock:
            if self._closing or self._pointer is None:
                raise OSError(errno.EBADF, f"{type(self).__name__} is closed: {os.strerror(errno.EBADF)}")
            self._users += 1
        try:
            yield self._pointer
        finally:
            self._release()

    def _hold(self) -> None:
        with self._lock:
            self._users += 1

    def _release(self) -> None:
        with self._lock:
            self._users -= 1
            self._settle()

    @abstractmethod
    def _close(self, pointer: int) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) is not None:
            self.close()


class Mapper(Handle):
    """A handle that makes mappings, and takes them back."""

    def _drop(self, mapping: "Mapping") -> None:
        pointer = self._pointer
        assert pointer is not None  # it outlives its mappings
        try:
            self._unmap(pointer, mapping)
        finally:
            self._release()

    @abstractmethod
    def _unmap(self, pointer: int, mapping: "Mapping") -> None:
        raise NotImplementedError


class Mapping:
    """Pages in this address space that are shared with another domain, until closed. Made by a handle."""

    def __init__(self, handle: Mapper, address: int, pages: int) -> None:
        handle._hold()
        self._handle: Mapper | None = handle
        #: Where the first page is.
        self.address: Final = address
        #: How many there are.
        self.pages: Final = pages

    @property
    def size(self) -> int:
        """Bytes."""
        return self.pages * PAGE_SIZE

    def close(self) -> None:
        """Unmap the pages; nothing may use the address any more. Closing twice is harmless.

        :raises OSError: the library could not unmap them.
        """
        handle, self._handle = self._handle, None
        if handle is not None:
            handle._drop(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
