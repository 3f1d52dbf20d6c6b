# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where a server gets its socket from: a path, a descriptor, a socket object, or systemd.

One listening socket lasts for the whole life of a server.
"""

import errno
import os
import socket

from vhost.io.listener import Listener

__all__ = ("Source", "check_place")

_FIRST_LISTEN_FD = 3


class Source:
    """A Unix stream socket that listens, or is connected already; owned from here on.

    :param path: bind and listen there.
    :param fd: descriptor of a listening or a connected socket.
    :param sock: the same as an object.
    :param listen_fds: take the socket that systemd passed (``LISTEN_FDS``).
    :raises ValueError: not exactly one of the four was given.
    :raises OSError: the path is in use, or what was given is no Unix stream socket.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        fd: int | None = None,
        sock: socket.socket | None = None,
        listen_fds: bool = False,
    ) -> None:
        check_place(path, None, fd, sock, listen_fds)
        self._listener: Listener | None = None
        if path is not None:
            self._listener = Listener(path)
            self.sock = self._listener.sock
        elif sock is not None:
            self.sock = _checked(sock, "sock")
        elif fd is not None:
            self.sock = _adopt(fd, f"fd {fd}")
        else:
            self.sock = _adopt(_systemd_fd(), "the socket in LISTEN_FDS")
        #: Whether clients are to be accepted; otherwise the socket is the connection.
        self.listening = bool(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        self.sock.setblocking(False)

    def __str__(self) -> str:
        return self.sock.getsockname() or f"fd {self.sock.fileno()}"

    def close(self) -> None:
        """Close the socket, and remove the path if it is still the one that was bound here."""
        if self._listener is not None:
            self._listener.close()
        self.sock.close()


def check_place(
    path: object | None, connect: object | None, fd: int | None, sock: object | None, listen_fds: bool
) -> None:
    """Complain unless exactly one place to serve at is given.

    :raises ValueError: that is the case.
    """
    if sum(place is not None for place in (path, connect, fd, sock, listen_fds or None)) != 1:
        raise ValueError("give exactly one of path, connect, fd, sock and listen_fds")


def _adopt(fd: int, what: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        why = error.strerror or error
        raise OSError(error.errno, f"{what} cannot be used as a socket: {why}") from None
    os.set_inheritable(fd, False)
    return _checked(sock, what)


def _checked(sock: socket.socket, what: str) -> socket.socket:
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        kind = f"{sock.family!r}, {sock.type!r}"
        sock.close()
        raise OSError(errno.EPROTOTYPE, f"{what} is no Unix stream socket but {kind}")
    return sock


def _systemd_fd() -> int:
    """The one descriptor passed by sd_listen_fds(3) rules; the variables are meant for nobody else."""
    pid, count = os.environ.pop("LISTEN_PID", None), os.environ.pop("LISTEN_FDS", None)
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid is None or count is None:
        raise OSError(errno.EINVAL, "LISTEN_FDS and LISTEN_PID are not set: not started by socket activation")
    if pid != str(os.getpid()):
        raise OSError(errno.EINVAL, f"LISTEN_PID is {pid}, but this is process {os.getpid()}")
    if count != "1":
        raise OSError(errno.EINVAL, f"LISTEN_FDS is {count}: exactly one socket is needed")
    return _FIRST_LISTEN_FD
