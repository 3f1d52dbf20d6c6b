# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A Unix socket that listens at a path of its own.

The path is created for the owner and, as far as the umask lets it, the group (mode 0660 less the umask),
never for others: who may connect may have this process map memory and do I/O on its behalf.
"""

import errno
import os
import socket
import stat
from contextlib import suppress

__all__ = ("Listener",)

_BACKLOG = 16
_MODE = 0o660


class Listener:
    """Binds `path` and listens there. The socket file of a process that died is replaced, nothing else is.

    :raises OSError: the path is in use, is something else than a socket, or cannot be.

    :ivar sock: does not block.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.sock = _bind(self.path)
        self._bound = _identity(self.path)

    def __str__(self) -> str:
        return self.path

    def close(self) -> None:
        """Close the socket, and remove the path if it is still the one that was bound here.

        Closing twice is harmless.
        """
        if self._bound is not None and _identity(self.path) == self._bound:
            os.unlink(self.path)
        self._bound = None
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
        raise OSError(error.errno, f"cannot listen on {path}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket file of a process that died; refuse to touch anything else."""
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
