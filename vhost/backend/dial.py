# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""How a server gets to a front-end that listens: tries, and the pauses between them."""

import errno
import logging
import os
import socket
import stat

__all__ = ("Dialer",)

log = logging.getLogger("vhost.backend")

# Seconds from one try to the next: at first, and at most.
_FIRST, _LONGEST = 0.1, 5.0
# What may pass by itself: nobody listens yet, or is too busy to accept; this process or the system is short.
_PASSING = (FileNotFoundError, ConnectionRefusedError, BlockingIOError)
_SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class Dialer:
    """Connects to `path`, again and again.

    :param name: the device's, for log lines: of failures one after the other, only the first has any.

    :ivar pause: seconds to wait before the next try.
    """

    def __init__(self, path: str | os.PathLike[str], name: str) -> None:
        self._path, self._name = os.fspath(path), name
        self.pause = 0.0
        self._next = _FIRST
        self._told = False
        #: Whether the last connection was not used.
        self.vain = False
        log.info("%s: connecting to %s", name, self._path)

    def attempt(self) -> socket.socket | None:
        """Try once: a connected socket that does not block, or None, to try again after `pause`.

        :raises OSError: the path will not do, however often it is tried.
        """
        try:
            return self._connected()
        except OSError as error:
            why, passing = error.strerror or str(error), isinstance(error, _PASSING) or error.errno in _SHORT
            if isinstance(error, ConnectionRefusedError) and not _is_socket(self._path):
                why, passing = "it is no socket", False
            if not passing:
                raise OSError(error.errno, f"cannot connect to {self._path}: {why}") from None
            if not self._told:
                log.info("%s: cannot connect to %s: %s; trying again", self._name, self._path, why)
            self._told = True
        self._wait()
        return None

    def _connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        return sock

    def ended(self, *, begun: bool) -> None:
        """A connection has ended, whose front-end did or did not begin to use the device."""
        self.vain = not begun
        if begun:
            self._next, self._told = _FIRST, False
        self._wait()

    def _wait(self) -> None:
        self.pause = self._next
        self._next = min(2 * self._next, _LONGEST)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True  # gone in the meantime
