# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A device daemon as a child process: started, waited for until it listens, stopped, and its log kept."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from vhost.errors import VhostError

__all__ = ("Daemon", "DaemonError")

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 5.0
_TAIL = 12


class DaemonError(VhostError):
    """A daemon did not do what it was started for."""


class Daemon:
    """A daemon that runs during a ``with`` block.

    :param name: module in :mod:`vhost.daemon`; *folder* takes socket and log.
    :param options: beside ``--socket-path``.
    """

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        self.name = f"vhost-{name}"
        self.socket = folder / f"{name}.sock"
        self._log = folder / f"{name}.log"
        self._ready = folder / f"{name}.ready"
        self._command = [
            sys.executable,
            "-P",  # not from the working directory, see _environment()
            "-m",
            f"vhost.daemon.{name}",
            f"--socket-path={self.socket}",
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        #: How it ended: 0 as it should, negative by a signal, None if it still runs or never did.
        self.status: int | None = None

    @property
    def pid(self) -> int:
        """Process id, 0 when it does not run."""
        return self._process.pid if self._process else 0

    def __enter__(self) -> Self:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self._log.open("wb") as log:
            ready.bind(str(self._ready))
            ready.settimeout(0.05)
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(self._ready),
                process_group=0,  # Ctrl-C is for us; we stop the daemon
            )
            try:
                self._await_ready(ready)
            except BaseException:
                self._stop()
                raise
        return self

    def _await_ready(self, ready: socket.socket) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                if ready.recv(256).startswith(b"READY=1"):
                    return
            except TimeoutError:
                pass
            if (status := self._process.poll()) is not None:
                raise DaemonError(f"{self.name} ended with status {status} before it listened")
            if time.monotonic() > deadline:
                raise DaemonError(f"{self.name} did not listen within {_START_TIMEOUT:g} s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = self._stop()
        if status and kind is None:
            raise DaemonError(f"{self.name} ended with status {status} on SIGTERM, and not with 0")

    def _stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except BaseException as error:
            self._process.kill()
            self._process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):  # but the user is in a hurry
                raise
        self.status = self._process.returncode
        return self.status

    def log_tail(self) -> list[str]:
        """The last lines of its log, none if it was not started."""
        try:
            return self._log.read_text(errors="replace").splitlines()[-_TAIL:]
        except FileNotFoundError:
            return []


def _environment(ready: Path) -> dict[str, str]:
    # The daemon is to be of this very installation, also when that is a source tree.
    env = {**os.environ, "NOTIFY_SOCKET": str(ready)}
    root = Path(__file__).parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
    return env
