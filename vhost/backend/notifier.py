# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One of the three descriptors of a vring (kick, call, err): an eventfd, or a pipe or socket in its place.

The descriptor comes from the peer, so it is checked, made non-blocking, and expected to fail at any time.
"""

import os
import stat

from vhost.errors import RemoteProtocolError

__all__ = ("Notifier",)

_ONE = (1).to_bytes(8, "little")


class Notifier:
    """Holds at most one descriptor, and closes it when it is replaced.

    :param name: for messages: ``kick descriptor of ring 0``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        #: The descriptor, or -1.
        self.fd = -1

    def set(self, fd: int) -> None:
        """Take over `fd`, in place of the one before; -1 for none.

        :raises RemoteProtocolError: it is a file or a device; the one before stays.
        """
        if fd >= 0:
            try:
                _check(fd, self.name)
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
            try:
                os.write(self.fd, _ONE)
            except OSError:
                pass

    def drain(self) -> str | None:
        """Take the pending notification, if any.

        :returns: None, or why there will never be one again.
        """
        try:
            return None if os.read(self.fd, 8) else "the peer has closed it"
        except BlockingIOError:
            return None
        except OSError as error:
            return error.strerror or str(error)


def _check(fd: int, name: str) -> None:
    mode = os.fstat(fd).st_mode
    # An eventfd has no file type at all. Others cannot be polled, or a write to them could block.
    if stat.S_IFMT(mode) and not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
        raise RemoteProtocolError(
            f"the {name} is of file type {stat.filemode(mode)[0]!r}, not an eventfd or a pipe"
        )
    os.set_blocking(fd, False)
