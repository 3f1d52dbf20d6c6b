# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The steps of which exchanges with a backend are made.

An exchange is a generator that yields steps and goes on when the step is done; it neither blocks nor knows
who runs it. :mod:`vhost.frontend.wait` runs exchanges in blocking code, :mod:`vhost.frontend.aio` in an event
loop: both try a step, wait for its descriptors when it could not be done, and try again.
"""

import abc
import errno
import select
import socket
import time
from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

from vhost.io import Listener, recv_fds, send_fds

__all__ = ("Step", "Dial", "Accept", "Send", "Receive", "Readable", "Until", "Exchange", "pause")

_T = TypeVar("_T")


class Step(abc.ABC):
    """Something that may have to wait.

    :ivar what: what is waited for, for the message of a ``TimeoutError``.
    :ivar reads: descriptors to wait for until they are readable.
    :ivar writes: descriptors to wait for until they are writable.
    :ivar again: seconds after which to try again in any case, None: not before a descriptor is ready.
    """

    __slots__ = ("what",)

    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    again: float | None = None

    def __init__(self, what: str) -> None:
        self.what = what

    @abc.abstractmethod
    def attempt(self) -> bool:
        """Try without waiting; True when the step is done."""

    def woken(self, fd: int) -> None:  # noqa: B027 - most steps find out by another attempt
        """A descriptor was ready a moment ago; who else waits for it may have been quicker."""

    def late(self, timeout: float | None) -> TimeoutError:
        """The error for a step that was not done in time."""
        return TimeoutError(f"waited {timeout:g} s for {self.what}")


class Dial(Step):
    """Connect a non-blocking Unix socket; a listener with a full backlog can only be tried again.

    :param until: monotonic time up to which it is tried again as well if nobody listens.
    """

    __slots__ = ("_sock", "_path", "_until")

    again = 0.01

    def __init__(self, sock: socket.socket, path: str, until: float = 0.0) -> None:
        super().__init__(f"{path} to accept the connection")
        self._sock = sock
        self._path = path
        self._until = until

    def attempt(self) -> bool:
        try:
            self._sock.connect(self._path)
        except BlockingIOError:
            return False
        except (ConnectionRefusedError, FileNotFoundError) as error:
            if time.monotonic() < self._until:
                return False
            error.filename = self._path
            raise
        except OSError as error:
            error.filename = self._path
            raise
        return True


class Accept(Step):
    """Wait for a backend to connect: `sock`.

    :param until: monotonic time up to which to wait, None: no limit but that of the exchange.
    """

    __slots__ = ("_listener", "_until", "again", "reads", "sock")

    def __init__(self, listener: Listener, until: float | None = None) -> None:
        super().__init__(f"a backend to connect to {listener}")
        self._listener = listener
        self._until = until
        self.again: float | None = None
        self.reads = (listener.sock.fileno(),)
        self.sock: socket.socket | None = None

    def attempt(self) -> bool:
        while True:
            try:
                sock, _ = self._listener.sock.accept()
            except BlockingIOError:
                break
            if not _gone(sock):
                self.sock = sock
                return True
            sock.close()  # it has waited too long for its turn
        if self._until is not None:
            self.again = max(0.0, self._until - time.monotonic())
            if not self.again:
                raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody has connected to {self._listener}")
        return False


def _gone(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


class Send(Step):
    """Write bytes, and descriptors with the first of them."""

    __slots__ = ("_sock", "_rest", "_fds", "writes")

    def __init__(self, sock: socket.socket, data: bytes, fds: Sequence[int], what: str) -> None:
        super().__init__(f"the backend to read {what}")
        self._sock = sock
        self._rest = memoryview(data)
        self._fds = fds
        self.writes = (sock.fileno(),)

    def attempt(self) -> bool:
        try:
            sent = send_fds(self._sock, self._rest, self._fds)
        except BlockingIOError:
            return False
        self._rest, self._fds = self._rest[sent:], ()
        return not self._rest


class Receive(Step):
    """Read what is there, at most `size` bytes: `data` (``b""`` at the end of the stream) and `fds`.

    :param aside: done before each attempt, and when one of `others` is readable.
    """

    __slots__ = ("_sock", "_size", "_aside", "data", "fds", "reads")

    def __init__(
        self,
        sock: socket.socket,
        size: int,
        what: str,
        aside: Callable[[], None] | None = None,
        others: Sequence[int] = (),
    ) -> None:
        super().__init__(f"the answer to {what}")
        self._sock = sock
        self._size = size
        self._aside = aside
        self.data = b""
        self.fds: list[int] = []
        self.reads = (sock.fileno(), *others)

    def attempt(self) -> bool:
        if self._aside is not None:
            self._aside()
        try:
            self.data, self.fds = recv_fds(self._sock, self._size)
        except BlockingIOError:
            return False
        return True


class Readable(Step):
    """Wait until at least one descriptor is readable or has failed: `ready` holds those that are or were."""

    __slots__ = ("ready", "reads")

    def __init__(self, fds: Sequence[int], what: str) -> None:
        super().__init__(what)
        self.reads = tuple(fds)
        self.ready: frozenset[int] = frozenset()

    def attempt(self) -> bool:
        poller = select.poll()
        for fd in self.reads:
            poller.register(fd, select.POLLIN)
        self.ready |= {fd for fd, _ in poller.poll(0)}
        return bool(self.ready)

    def woken(self, fd: int) -> None:
        self.ready |= {fd}


class Until(Step):
    """Try again every so many seconds, or when a descriptor is ready, until something is the case."""

    __slots__ = ("_case", "again", "reads", "writes")

    def __init__(
        self,
        case: Callable[[], bool],
        what: str,
        *,
        again: float | None = None,
        reads: Sequence[int] = (),
        writes: Sequence[int] = (),
    ) -> None:
        super().__init__(what)
        self._case = case
        self.again = again
        self.reads = tuple(reads)
        self.writes = tuple(writes)

    def attempt(self) -> bool:
        return self._case()


#: A flow that ends in a `T`.
Exchange: TypeAlias = Generator[Step, None, _T]


def pause(seconds: float, what: str) -> Exchange[None]:
    """Let so much time pass."""
    end = time.monotonic() + seconds
    yield Until(lambda: time.monotonic() >= end, what, again=seconds)
