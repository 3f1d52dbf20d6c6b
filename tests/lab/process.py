# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A child process of the lab: its log, its end. None outlives the lab, however the lab ends."""

import os
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.prerequisites import tool

__all__ = ("Process",)


class Process:
    """A running program; standard output and error go to a file. A context manager that kills it in the end.

    :param log: file for its output.
    :param fds: file descriptors that it inherits under their numbers.
    :param stdio: a descriptor for its input and output, which then do not go to ``log``.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        log: Path,
        *,
        fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        terminal: bool = False,
        stdio: int | None = None,
    ) -> None:
        self.log = log
        self.name = Path(argv[0]).name
        # If the lab itself is killed, the kernel ends the program too.
        command = [tool("setpriv"), "--pdeathsig", "KILL", *argv]
        with open(log, "wb") as output:
            self._child = subprocess.Popen(
                command,
                stdin=None if terminal else subprocess.DEVNULL if stdio is None else stdio,
                stdout=None if terminal else output if stdio is None else stdio,
                stderr=None if terminal else subprocess.STDOUT,
                pass_fds=fds,
                env=None if environment is None else {**os.environ, **environment},
            )
        self.end_fd = os.pidfd_open(self._child.pid)  # readable when the process has ended

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._child.poll() is None

    def wait(self, seconds: float | None) -> int:
        """Waits for its end.

        :returns: the exit status; a negative number is the signal that ended it.
        :raises TimeoutError: it still runs after ``seconds``.
        """
        if not select.select([self.end_fd], [], [], seconds)[0]:
            raise TimeoutError(f"{self.name} still runs after {seconds} s; its last words:\n{self.tail()}")
        return self._child.wait()

    def stop(self, seconds: float = 10) -> int:
        """Asks it to end (SIGTERM) and waits; see :meth:`wait`."""
        self._child.terminate()
        return self.wait(seconds)

    def kill(self) -> None:
        """Ends it now, if it still runs. It can be called again."""
        if self.end_fd >= 0:
            self._child.kill()
            self._child.wait()
            os.close(self.end_fd)
            self.end_fd = -1

    def output(self) -> str:
        """All it has written so far."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 25) -> str:
        """The last lines it has written."""
        return "\n".join(self.output().splitlines()[-lines:])
