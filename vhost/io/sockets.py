# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bytes and file descriptors through a Unix stream socket, for blocking code and for event loops.

``recv_fds`` and ``send_fds`` are one system call each and never wait on a non-blocking socket; ``send_all``
and ``wait`` wait, but not for ever. Nothing here knows what the bytes mean.
"""

import array
import os
import select
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

__all__ = ("HasFileno", "recv_fds", "send_fds", "send_all", "wait", "close_fds")

# The most descriptors Linux puts into one message (SCM_MAX_FD).
_MAX_FDS = 253
_INT = array.array("i").itemsize
_CONTROL_SIZE = socket.CMSG_SPACE(_MAX_FDS * _INT)


class HasFileno(Protocol):
    """Anything with a file descriptor: a socket, an eventfd wrapper, a ``Stop``."""

    def fileno(self) -> int: ...


def close_fds(fds: Iterable[int]) -> None:
    """Close every descriptor; one that is closed already does not keep the others open."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def recv_fds(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Read at most `size` bytes and the descriptors that came with them, in one ``recvmsg``.

    The descriptors are close-on-exec and belong to the caller. When the kernel could not deliver all of them
    (this process is out of descriptors), the ones that did arrive are closed and none is returned: which one
    is missing cannot be known, so the message counts as one without descriptors.

    :returns: the bytes (``b""``: the peer has closed) and the descriptors.
    :raises BlockingIOError: nothing there, on a non-blocking socket.
    :raises OSError: as the system reports it.
    """
    data, control, flags, _ = sock.recvmsg(size, _CONTROL_SIZE, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % _INT])
    if flags & socket.MSG_CTRUNC:
        close_fds(fds)
        return data, []
    return data, fds.tolist()


def send_fds(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int] = ()) -> int:
    """Write `data`, with `fds` riding on its first byte, in one ``sendmsg``; `fds` stay open here.

    :returns: the number of bytes taken; the descriptors are gone with the first of them.
    :raises BlockingIOError: no room now, on a non-blocking socket; nothing was sent.
    :raises OSError: as the system reports it.
    """
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], control, socket.MSG_NOSIGNAL)


def send_all(
    sock: socket.socket,
    data: bytes,
    fds: Sequence[int] = (),
    *,
    timeout: float | None = None,
    stop: HasFileno | None = None,
) -> bool:
    """Write all of `data` to a non-blocking socket, waiting for room where needed.

    :param timeout: seconds for the whole of it, None for no limit.
    :param stop: give up when this becomes readable.
    :returns: True when all was sent, False when `stop` ended it.
    :raises TimeoutError: the peer did not read for that long.
    :raises OSError: as the system reports it.
    """
    sent = 0
    try:
        if (sent := send_fds(sock, data, fds) if fds else sock.send(data, socket.MSG_NOSIGNAL)) == len(data):
            return True
    except BlockingIOError:
        pass
    deadline = None if timeout is None else time.monotonic() + timeout
    rest, riding = memoryview(data)[sent:], () if sent else fds
    while rest:
        try:
            sent = send_fds(sock, rest, riding)
        except BlockingIOError:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                if not wait(sock, select.POLLOUT, timeout=left, stop=stop):
                    return False
            except TimeoutError:
                raise TimeoutError(f"the peer has read nothing for {timeout:g} s") from None
            continue
        rest, riding = rest[sent:], ()
    return True


def wait(
    source: HasFileno | int, events: int, *, timeout: float | None = None, stop: HasFileno | None = None
) -> bool:
    """Wait until `source` is ready for `events` (of :func:`select.poll`) or has failed.

    :param timeout: seconds, None for no limit.
    :param stop: give up when this becomes readable.
    :returns: True when `source` is ready, False when `stop` is.
    :raises TimeoutError: neither, for that long.
    """
    poller = select.poll()
    poller.register(source, events)
    if stop is not None:
        poller.register(stop, select.POLLIN)
    ready = poller.poll(None if timeout is None else timeout * 1000)
    if not ready:
        raise TimeoutError(f"the peer was not ready for {timeout:g} s")
    return stop is None or all(fd != stop.fileno() for fd, _ in ready)
