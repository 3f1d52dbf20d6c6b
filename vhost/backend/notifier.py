# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A descriptor for notifications (kick, call, err, log): an eventfd, or a pipe or socket in its place.

The descriptor comes from the peer, so it is checked, and expected to fail at any time. Its flags are the
peer's too: an eventfd by which the peer is told is left as it is, others are made non-blocking.
"""

import errno
import os
import stat

from vhost._core import lib
from vhost.errors import RemoteProtocolError

__all__ = ("Notifier",)


class Notifier:
    """Holds at most one descriptor, and closes it when it is replaced.

    :param name: for messages: ``kick descriptor of ring 0``.
    :param taken: the peer notifies by it, and this side takes the notifications.
    """

    def __init__(self, name: str, *, taken: bool = False) -> None:
        self.name = name
        self._taken = taken
        #: The descriptor, or -1.
        self.fd = -1

    def set(self, fd: int) -> None:
        """Take over `fd`, in place of the one before; -1 for none.

        :raises RemoteProtocolError: it is a file or a device; the one before stays.
        """
        if fd >= 0:
            try:
                _check(fd, self.name, self._taken)
            except BaseException:
                os.close(fd)
                raise
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = fd

    def close(self) -> None:
        """Close what is held."""
        self.set(-1)

    def signal(self) -> None:
        """Tell the peer; that it does not listen any more is its own affair."""
        if self.fd >= 0:
            lib.vh_notify(self.fd)

    def drain(self) -> str | None:
        """Take the pending notification, if any.

        :returns: None, or why there will never be one again.
        """
        result = lib.vh_take(self.fd, True)
        if result >= 0:
            return None
        return "the peer has closed it" if result == -errno.EPIPE else os.strerror(-result)


def _check(fd: int, name: str, taken: bool) -> None:
    result = lib.vh_notifier(fd, taken)
    if result > 0:
        raise RemoteProtocolError(
            f"the {name} is of file type {stat.filemode(result)[0]!r}, not an eventfd or a pipe"
        )
    if result < 0:
        raise OSError(-result, os.strerror(-result))
