# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The loop of a worker in C, without a ring."""

import os
import threading

from vhost._core import ffi, lib


def test_a_worker_that_was_told_to_stop_returns_whatever_was_taken_back() -> None:
    """Who takes one stop back may overwrite the next one, of which the descriptor still tells."""
    worker, poll = ffi.new("struct vh_worker *"), ffi.new("uint64_t[]", 1)
    worker.poll, worker.stop_fd = poll, os.eventfd(0, os.EFD_NONBLOCK)
    lib.vh_worker_stop(worker)
    worker.stop = 0
    events: list[int] = []
    thread = threading.Thread(target=lambda: events.append(lib.vh_worker_run(worker)), daemon=True)
    thread.start()
    thread.join(10)
    assert events == [lib.VH_W_STOP], "it polls what nobody reads"
    assert worker.sleeps <= 1
    os.close(worker.stop_fd)
