# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""xenstore, the tree of names and values by which domains find each other: connections to it.

What can be done with its nodes is in :mod:`pyxenctrl.nodes`.
"""

import ctypes
import errno
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, final

from pyxenctrl.handle import Handle
from pyxenctrl.library import failure
from pyxenctrl.nodes import Nodes, check, encoded, library, strings, taken

__all__ = ("Event", "Store", "Transaction")


class Event(NamedTuple):
    """Something below a watched path has changed."""

    path: str
    token: str


@final
class Transaction(Nodes):
    """The tree as it was when the transaction began, with its own changes. Made by a store."""

    def __init__(self, store: "Store", number: int) -> None:
        self._library = store._library
        self._store = store
        self._number = number
        self._over = False

    @contextmanager
    def _live(self) -> Iterator[int]:
        # xenstored says of an unknown transaction what it says of a missing node.
        if self._over:
            raise OSError(errno.EBADF, "the xenstore transaction is over")
        with self._store._live() as handle:
            yield handle

    def _end(self, *, abandon: bool) -> None:
        self._over = True
        with self._store._live() as handle:
            done = self._library.xs_transaction_end(handle, self._number, abandon)
            check(done, "cannot end the xenstore transaction")


@final
class Store(Handle, Nodes):
    """A connection to xenstored.

    :raises OSError: the library is not installed, or xenstored cannot be reached.
    """

    def __init__(self) -> None:
        self._library = library()
        pointer = self._library.xs_open(0)
        if not pointer:
            raise failure("cannot reach xenstored (is this Xen, and does xenstored run?)")
        super().__init__(pointer)

    def fileno(self) -> int:
        """The descriptor that is readable when a watch has fired; only wait on it."""
        with self._live() as handle:
            fd: int = self._library.xs_fileno(handle)
            check(fd >= 0, "cannot tell the descriptor of the xenstore connection")
            return fd

    def domain_path(self, domid: int) -> str:
        """Where a domain's own nodes are, whether it exists or not.

        :raises OSError: the connection is lost.
        """
        with self._live() as handle:
            path = self._library.xs_get_domain_path(handle, domid)
            check(path, f"cannot tell the xenstore path of domain {domid}")
        return taken(path, lambda: ctypes.string_at(path).decode())

    def watch(self, path: str, token: str) -> None:
        """Be told of all changes of a node and of all below it, the first time at once.

        :param token: comes back with each event.
        :raises OSError: EEXIST: the same path and token are watched already.
        """
        with self._live() as handle:
            done = self._library.xs_watch(handle, encoded(path), encoded(token))
            check(done, f"cannot watch {path} in xenstore")

    def unwatch(self, path: str, token: str) -> None:
        """Undo a watch; events that have come already are still delivered.

        :raises OSError: ENOENT: no such watch.
        """
        with self._live() as handle:
            done = self._library.xs_unwatch(handle, encoded(path), encoded(token))
            check(done, f"cannot undo the watch of {path} in xenstore")

    def read_watch(self, timeout: float | None = None) -> Event | None:
        """The next event of all watches; it is waited for.

        :param timeout: seconds after which there is none; 0: do not wait. By default that never happens.
        :raises OSError: the connection is lost.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._live() as handle:
            poll = select.poll()
            poll.register(self.fileno(), select.POLLIN)
            while True:
                event = self._fired(handle)
                left = None if end is None else max(0.0, end - time.monotonic())
                if event or left == 0:
                    return event
                # Not in the library: its waiting hears no signals.
                poll.poll(None if left is None else left * 1000)

    def _fired(self, handle: int) -> Event | None:
        found = self._library.xs_check_watch(handle)
        if found:
            return taken(found, lambda: Event(*strings(found, 2)))
        if ctypes.get_errno() != errno.EAGAIN:
            raise failure("cannot read a watch of xenstore")
        return None

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Do several things as one; they are abandoned when the block raises.

        :raises BlockingIOError: EAGAIN: what was read or written has been changed meanwhile by somebody else;
            nothing was done, and all is to be done again.
        """
        with self._live() as handle:
            number = self._library.xs_transaction_start(handle)
            check(number, "cannot start a xenstore transaction")
        transaction = Transaction(self, number)
        try:
            yield transaction
        except BaseException:
            with suppress(OSError):  # it ends with the connection anyway
                transaction._end(abandon=True)
            raise
        transaction._end(abandon=False)

    def _close(self, pointer: int) -> None:
        self._library.xs_close(pointer)
