# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Uses of guest memory that begin and end: for a block, for a ring's lifetime, for a batch.

Each holds views, and views hold their mapping: what is in use stays mapped after its region was removed, and
is unmapped with its last user. Knows nothing of how memory was mapped.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self, final

from vhost.errors import GuestMemoryError

__all__ = ("Access", "Spans", "RingAccess", "Deferred")


@final
class Access:
    """A contiguous range of guest memory for the length of a ``with`` block, which gets the view.

    The view is released at the end of the block. A slice taken from it stays usable and keeps the memory
    mapped, grants of a guest included, so take none that outlive the block.
    """

    __slots__ = ("_view",)

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def __enter__(self) -> memoryview:
        return self._view

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self._view.release()


@final
class Spans:
    """Guest memory that may cross region borders: views in address order. See :class:`Access`."""

    __slots__ = ("_views",)

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = tuple(views)

    def __enter__(self) -> tuple[memoryview, ...]:
        return self._views

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        with ExitStack() as stack:
            for view in self._views:
                stack.callback(view.release)


@final
class RingAccess:
    """Memory of a ring: contiguous, writable, mapped until closed, whatever happens to its region.

    Not safe for use by several threads at once.
    """

    __slots__ = ("_view", "_address")

    def __init__(self, view: memoryview, address: int) -> None:
        self._view: memoryview | None = view
        self._address = address

    @property
    def address(self) -> int:
        """Host address of the first byte.

        :raises GuestMemoryError: closed already.
        """
        self.view  # noqa: B018 - raises
        return self._address

    @property
    def view(self) -> memoryview:
        """The memory itself.

        :raises GuestMemoryError: closed already.
        """
        if self._view is None:
            raise GuestMemoryError("this ring memory was closed and may be unmapped")
        return self._view

    def close(self) -> None:
        """Give the memory back. Closing twice is harmless."""
        if self._view is not None:
            self._view.release()
            self._view = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self.close()


@final
class Deferred:
    """Memory mapped for one batch of requests: host addresses, in the order they were wanted.

    The addresses are good until closed, or until the last reference is gone.
    """

    __slots__ = ("addresses", "_views")

    def __init__(self, addresses: list[int], views: Sequence[memoryview]) -> None:
        #: Host addresses; empty once closed.
        self.addresses = addresses
        self._views = tuple(views)

    @property
    def views(self) -> tuple[memoryview, ...]:
        """What keeps the memory mapped; none once closed."""
        return self._views

    def close(self) -> None:
        """Give the memory back, which unmaps grants. Closing twice is harmless."""
        self.addresses = []
        self._views = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self.close()
