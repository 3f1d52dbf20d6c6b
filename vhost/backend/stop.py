# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A way to end a server from a signal handler or another thread."""

import os
import select

__all__ = ("Stop",)


class Stop:
    """Set once, seen by everything that waits; pass it to :func:`vhost.serve` as `stop`.

    ::

        with Stop() as stop:
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            vhost.serve(device, path, stop=stop)
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The descriptor: readable from :meth:`set` on."""
        return self._fd

    def set(self) -> None:
        """End what waits; may be called from a signal handler, a thread, and more than once."""
        os.eventfd_write(self._fd, 1)

    def is_set(self) -> bool:
        """Whether :meth:`set` was called."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Give the descriptor back; nothing may use this object any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "Stop":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
