# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Ending a server from elsewhere."""

import subprocess
import sys

from vhost.backend import Stop

# The main thread is busy where no signal handler written in Python can run, as it is for a moment before
# every wait; the signal has to be seen all the same.
BUSY = """
import hashlib, os, select, signal, sys, threading, time
from vhost.backend import Stop

seen = 0.0

def watch():
    global seen
    time.sleep(0.1)  # until the main thread is in the long call
    os.kill(os.getpid(), signal.SIGTERM)
    select.select([stop], [], [], 60)
    seen = time.monotonic()

with Stop() as stop:
    stop.on_signals(signal.SIGTERM)
    thread = threading.Thread(target=watch)
    begin = time.monotonic()
    thread.start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)
    end = time.monotonic()
    thread.join()
    assert seen - begin < (end - begin) / 2, (begin, seen, end)
"""


def test_a_signal_needs_no_handler_to_run() -> None:
    ended = subprocess.run([sys.executable, "-P", "-c", BUSY], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_set_is_seen_and_stays() -> None:
    with Stop() as stop:
        assert not stop.is_set()
        for _ in range(100_000):  # more than a pipe holds
            stop.set()
        assert stop.is_set()
        assert stop.is_set()
    stop.close()
