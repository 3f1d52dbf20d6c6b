# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A daemon under observation: what it says, and what it has of other domains."""

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from tests.lab.daemons import Daemon

from .daemons import daemon

__all__ = ("SECONDS", "Holdings", "Watch", "watched")

SECONDS = 60  # that anything may take
POLL_SECONDS = 0.01

# libxengnttab prints a line of its own when a map fails, which the daemon then says in its own words.
HARMLESS = re.compile(r"vhost-\w+: (?!(warning|error|critical): )|gnttab: error: ")


class Holdings(NamedTuple):
    """What a process has: pages mapped through Xen's devices, and descriptors by what they are."""

    pages: int
    descriptors: Counter[str]

    @classmethod
    def of(cls, pid: int) -> "Holdings":
        """What it has now."""
        ranges = [
            line.split()[0].split("-")
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
            if "/dev/xen/" in line
        ]
        pages = sum(int(end, 16) - int(start, 16) for start, end in ranges) // 4096
        found: Counter[str] = Counter()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the listing itself, if it is this process
                found[re.sub(r":\[\d+\]", "", str(link.readlink()))] += 1
        return cls(pages, found)


class Watch:
    """Observes a daemon that listens and serves nobody.

    Its warnings and errors must be asked for, by :meth:`complaint`.
    """

    def __init__(self, running: Daemon) -> None:
        self.daemon = running
        self.socket = running.socket
        about = Path(f"/proc/self/fdinfo/{running.end_fd}").read_text()
        self.pid = int(re.findall(r"^Pid:\s*(\d+)$", about, re.MULTILINE)[0])
        self._before = self.holdings()
        self._start = 0  # bytes of its log that were there before
        self._taken = 0  # complaints since then that were asked for

    def holdings(self) -> Holdings:
        """What it has now."""
        return Holdings.of(self.pid)

    @property
    def pages(self) -> int:
        """Pages of other domains that it has mapped."""
        return self.holdings().pages

    def opened(self) -> Counter[str]:
        """The descriptors it has besides those of an idle one."""
        return self.holdings().descriptors - self._before.descriptors

    def complaint(self, pattern: str) -> str:
        """The next warning or error that was not asked for yet, which must match; waits for it."""
        deadline = time.monotonic() + SECONDS
        while not (new := self._new_complaints()):
            assert self.daemon.running, f"it has ended:\n{self.daemon.tail()}"
            assert time.monotonic() < deadline, f"no complaint like {pattern!r}:\n{self.daemon.tail()}"
            time.sleep(POLL_SECONDS)
        self._taken += 1
        assert re.search(pattern, new[0]), f"{pattern!r} expected, not {new[0]!r}"
        return new[0]

    @contextlib.contextmanager
    def test(self) -> Iterator[Self]:
        """A test of its own: what the daemon has said before does not matter, and it is idle in the end."""
        self._start, self._taken = self.daemon.log.stat().st_size, 0
        yield self
        self.settle()

    def settle(self) -> None:
        """Waits until it serves nobody again; it must hold what it did before, and not have complained more.

        Who was served before must have had an answer to something.
        """
        deadline = time.monotonic() + SECONDS
        while True:
            text = self.daemon.output()
            if text.count(": front-end connected") == len(
                re.findall(r": connection (ended|dropped|lost)", text)
            ):
                break
            assert time.monotonic() < deadline, f"still serves somebody:\n{self.daemon.tail()}"
            time.sleep(POLL_SECONDS)
        now, complaints = self.holdings(), self._new_complaints()
        assert now == self._before, f"idle before: {self._before}; now: {now}"
        assert not complaints, complaints

    def finish(self, running: Daemon) -> None:
        """Ends it as a service manager would; it must leave in order."""
        status, complaints = running.stop(), self._new_complaints()
        assert status == 0, f"{running.name} ended with status {status}:\n{running.tail()}"
        assert not complaints, complaints
        assert not running.socket.exists(), f"{running.name} left its socket behind: {running.socket}"

    def _said(self) -> str:
        with open(self.daemon.log, "rb") as log:
            log.seek(self._start)
            return log.read().decode()

    def _new_complaints(self) -> list[str]:
        complaints = [line for line in self._said().splitlines() if not HARMLESS.match(line)]
        return complaints[self._taken :]


@contextlib.contextmanager
def watched(script: str, *options: str | os.PathLike[str], work: Path) -> Iterator[Watch]:
    """A daemon that listens, and is watched; for the rest see :func:`tests.xen.real.daemons.daemon`."""
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(daemon(script, *options, work=work, finish=lambda it: watch.finish(it)))
        watch = Watch(running)
        yield watch
