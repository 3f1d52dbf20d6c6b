# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs the programs of the package as processes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

TIMEOUT = 60.0


def command(module: str, *options: str) -> list[str]:
    """The command line of a module, with warnings as errors."""
    return [sys.executable, "-P", "-W", "error", "-m", module, *options]


def environment(**more: str) -> dict[str, str]:
    """Ours without what would make a daemon behave differently, and `more`."""
    mine = {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "JOURNAL_STREAM", "VHOST_LOG"}
    return {**{name: value for name, value in os.environ.items() if name not in mine}, **more}


def python_path(folder: Path) -> str:
    """PYTHONPATH with `folder` in front. An empty entry would be the working directory, so there is none."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def run(module: str, *options: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        command(module, *options),
        env=environment() if env is None else env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT,
    )


class Running:
    """A daemon that has said READY=1; `stderr` holds its log once it has ended."""

    def __init__(self, process: subprocess.Popen[str], notifications: socket.socket) -> None:
        self.process = process
        self.notifications = notifications
        self.stderr = ""

    def end(self, number: int | None = signal.SIGTERM) -> int:
        """Send a signal (None: none), wait for the end, return the status."""
        if number is not None:
            self.process.send_signal(number)
        _, self.stderr = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode


def _wait(ready: socket.socket, process: subprocess.Popen[str]) -> None:
    """Until READY=1; a program that ends before fails at once, with what it said."""
    ready.settimeout(0.1)
    for _ in range(int(TIMEOUT / 0.1)):
        with suppress(TimeoutError):
            assert ready.recv(100) == b"READY=1"
            ready.settimeout(TIMEOUT)
            return
        if process.poll() is not None:
            raise AssertionError(f"status {process.returncode}: {process.communicate()[1]}")
    raise AssertionError(f"not ready within {TIMEOUT:g} s")


@contextmanager
def daemon(
    folder: Path, module: str, *options: str, fds: tuple[int, ...] = (), **env: str
) -> Iterator[Running]:
    """Start a daemon and wait until it is ready; kill it in the end if it still runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(folder / "notify"))
        process = subprocess.Popen(
            command(module, *options),
            env=environment(NOTIFY_SOCKET=str(folder / "notify"), **env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=fds,
        )
        try:
            _wait(ready, process)
            yield Running(process, ready)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
