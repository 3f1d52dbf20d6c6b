# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A way to end a server from a signal, a signal handler or another thread."""

import os
import select
import signal

__all__ = ("Stop",)


class Stop:
    """Set once, seen by everything that waits; pass it to :func:`vhost.serve` as `stop`.

    ::

        with Stop() as stop:
            stop.on_signals(signal.SIGTERM)
            vhost.serve(device, path, stop=stop)
    """

    def __init__(self) -> None:
        # A pipe: unlike an eventfd it takes the single byte that the interpreter writes for a signal.
        self._fd, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: int | None = None  # who had the interpreter's wake-up descriptor

    def fileno(self) -> int:
        """The descriptor: readable from :meth:`set` on."""
        return self._fd

    def set(self) -> None:
        """End what waits; may be called from a signal handler, a thread, and more than once."""
        try:
            os.write(self._writer, b"\0")
        except BlockingIOError:
            pass  # it was set often enough

    def on_signals(self, *numbers: signal.Signals) -> None:
        """Be set by these signals until closed; only in the main thread.

        A handler that calls :meth:`set` is not enough for a server that waits in the main thread: a signal
        that arrives just before the wait begins does not end it, and its handler runs only after it.
        """
        for number in numbers:
            signal.signal(number, lambda *_: None)
        before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        if self._before is None:
            self._before = before

    def is_set(self) -> bool:
        """Whether :meth:`set` was called, or one of the signals has come."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Give the descriptors back; nothing may use this object any more."""
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
            self._before = None
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._writer)
            self._fd = self._writer = -1

    def __enter__(self) -> "Stop":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
