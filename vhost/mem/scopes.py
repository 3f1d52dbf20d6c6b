# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Uses of guest memory that begin and end: for a block, for a ring's lifetime, for a batch.

Each holds views, and views hold their mapping: what is in use stays mapped after its region was removed, and
is unmapped with its last user. Knows nothing of how memory was mapped.
"""

from collections.abc import Callable, Sequence
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

    :param closed: called when it is given back, after the view is gone.
    """

    __slots__ = ("_view", "_address", "_closed")

    def __init__(self, view: memoryview, address: int, closed: Callable[[], None] | None = None) -> None:
        self._view: memoryview | None = view
        self._address = address
        self._closed = closed

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
        view, self._view = self._view, None
        closed, self._closed = self._closed, None
        if view is not None:
            view.release()
        if closed is not None:
            closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self.close()


@final
class Deferred:
    """Memory made reachable for a batch of requests: good until closed, or until the last reference is gone.

    :param views: what keeps it so.
    :param store: brings what was written into copies to where the guest finds it.
    """

    __slots__ = ("_views", "_store")

    def __init__(self, views: Sequence[object], store: Callable[[int], None] | None = None) -> None:
        self._views = tuple(views)
        self._store = store

    @property
    def views(self) -> tuple[object, ...]:
        """What keeps the memory reachable; none once closed."""
        return self._views

    def store(self, copies: int) -> None:
        """Bring what the device wrote to the guest; before :meth:`close`.

        :param copies: what ``vh_grants_written`` counted when it cut the pieces to what was written.
        :raises GuestMemoryError: a grant cannot be written; some of the others may have been.
        """
        if self._store is not None:
            self._store(copies)

    def close(self) -> None:
        """Give the memory back, which unmaps grants. Closing twice is harmless."""
        self._views = ()
        self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self.close()
