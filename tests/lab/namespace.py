# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A network of its own for a test, without privileges: in user and network namespaces (namespaces(7))."""

import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.prerequisites import Missing, tool
from tests.lab.process import Process

__all__ = ("Namespace",)

START_SECONDS = 20


class Namespace:
    """New namespaces, in which one may do all that root may do to a network. They end with it.

    A context manager.

    :param logs: folder for the log of the process that holds them.
    :raises Missing: the kernel or its settings do not allow it, or there is no TUN/TAP driver.
    """

    def __init__(self, logs: Path) -> None:
        if not Path("/dev/net/tun").exists():
            raise Missing("/dev/net/tun does not exist; load the kernel's module tun")
        script = 'echo ready; exec "$0" infinity'
        argv = [tool("unshare"), "--map-root-user", "--net", "sh", "-c", script, tool("sleep")]
        self._holder = Process(argv, logs / "namespace.log")
        deadline = time.monotonic() + START_SECONDS
        while self._holder.output() != "ready\n":
            if not self._holder.running or time.monotonic() > deadline:
                self._holder.kill()
                raise Missing(f"no network namespace for a test: {self._holder.tail()}")
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.kill()

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command that becomes the one that follows, in there. That one ends with the lab, too."""
        enter = (tool("nsenter"), f"--target={self._holder.pid}", "--user", "--net", "--preserve-credentials")
        return (*enter, tool("setpriv"), "--pdeathsig", "KILL")  # which entering has undone

    def run(self, command: str, seconds: float = 60) -> str:
        """Runs a shell command in there.

        :returns: its standard output, without the last newline.
        :raises AssertionError: its status is not 0.
        :raises subprocess.TimeoutExpired: it takes more than ``seconds``.
        """
        argv = (*self.prefix, "sh", "-e", "-c", command)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)
        assert done.returncode == 0, f"`{command}` ended with status {done.returncode}:\n{done.stderr}"
        return done.stdout.removesuffix("\n")
