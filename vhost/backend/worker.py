# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs a ring in a thread of its own; the interpreter lock is free while it waits."""

import os
import select
import threading

from vhost.backend.ring import Ring

__all__ = ("Worker",)


class Worker:
    """The runner of blocking servers: one thread, from creation until :meth:`stop`."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=ring.name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self._stop)
            raise

    def stop(self) -> None:
        """Wait until the device has finished with what it has, and end the thread."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)

    def _run(self) -> None:
        ring, kick = self._ring, self._ring.kick.fd
        poller = select.poll()
        poller.register(self._stop, select.POLLIN)
        if kick >= 0:
            poller.register(kick, select.POLLIN)
        while True:
            delay = ring.service()
            if ring.broken and kick >= 0:
                poller.unregister(kick)
                kick = -1
            ready = [fd for fd, _ in poller.poll(None if delay is None else delay * 1000)]
            if self._stop in ready:
                return
            if kick in ready:
                ring.kicked()
