# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where a server gets its socket from: a path, a descriptor, a socket object, or systemd.

One listening socket lasts for the whole life of a server. A path is created for the owner and, as far as the
umask lets it, the group (mode 0660 less the umask), never for others: who may connect may have the daemon
map memory and do I/O on its behalf.
"""

import errno
import os
import socket
import stat
from contextlib import suppress

__all__ = ("Source",)

_FIRST_LISTEN_FD = 3
_BACKLOG = 16
_MODE = 0o660


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
        if sum((path is not None, fd is not None, sock is not None, listen_fds)) != 1:
            raise ValueError("give exactly one of path, fd, sock and listen_fds")
        self._path: str | None = None
        if path is not None:
            self._path = os.fspath(path)
            self.sock = _bind(self._path)
            self._bound = _identity(self._path)
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
        if self._path is not None and self._bound is not None and _identity(self._path) == self._bound:
            os.unlink(self._path)
        self.sock.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _bind(path: str) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), _MODE)  # Linux gives the path this mode less the umask, with no gap between
        sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise _about(error, f"cannot listen on {path}") from None
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket file of a server that died; refuse to touch anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(
            errno.EEXIST, f"{path} exists and is no socket; remove it or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: very much alive
    raise OSError(errno.EADDRINUSE, f"another process listens on {path}; stop it or choose another path")


def _adopt(fd: int, what: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise _about(error, f"{what} cannot be used as a socket") from None
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


def _about(error: OSError, what: str) -> OSError:
    return OSError(error.errno, f"{what}: {error.strerror or error}")
