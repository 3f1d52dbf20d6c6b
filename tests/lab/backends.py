# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Backends of other authors, from Debian's packages in the cache, each behind a socket of its own."""

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.daemons import START_SECONDS, Daemon
from tests.lab.peers import Peer, packaged
from tests.lab.userland import Userland, debian

__all__ = ("BACKENDS", "PASST", "VIRTIOFSD", "VSOCK", "Backend", "listens")

LISTENING = "00010000"  # __SO_ACCEPTCON among the flags in /proc/net/unix


@dataclass(frozen=True, slots=True)
class Backend:
    """A program of a package.

    :param package: of Debian.
    :param suite: where a version is that speaks vhost-user.
    :param program: path below the root.
    """

    package: str
    suite: str
    program: str

    def command(self, *options: str | os.PathLike[str]) -> list[str | os.PathLike[str]]:
        """A command line that runs it on this machine.

        :raises Missing: this machine's apt cannot provide it.
        """
        return self.userland().command(self.program, *options)

    def userland(self) -> Userland:
        """Where it is, with all that it needs."""
        return userland(self.package, self.suite)

    @property
    def peer(self) -> Peer:
        """It, for the table of peers."""
        return Peer(self.package, lambda: packaged(self.userland().root, self.package))

    @contextlib.contextmanager
    def listening(self, *options: str | os.PathLike[str], socket: Path, log: Path) -> Iterator[Daemon]:
        """The running program, from "it listens" on; it is killed in the end unless it has ended before.

        :param options: its own, which name the socket.
        """
        with Daemon(self.command(*options), log) as daemon:
            daemon.name, daemon.socket = self.package, socket
            deadline = time.monotonic() + START_SECONDS
            while not listens(socket):
                assert daemon.running, f"{daemon.name} ended with {daemon.wait(0)}:\n{daemon.tail()}"
                assert time.monotonic() < deadline, f"{daemon.name} does not listen:\n{daemon.tail()}"
                time.sleep(0.01)
            yield daemon


VIRTIOFSD = Backend("virtiofsd", "trixie", "usr/libexec/virtiofsd")
VSOCK = Backend("vhost-device-vsock", "sid", "usr/bin/vhost-device-vsock")
PASST = Backend("passt", "trixie", "usr/bin/passt")
BACKENDS = PASST, VIRTIOFSD, VSOCK


@functools.cache
def userland(package: str, suite: str) -> Userland:
    # Looked up once in a run.
    return debian([package], suite)


def listens(socket: Path) -> bool:
    # Whether somebody listens there. To connect would show it too, but some programs serve one client only.
    lines = map(str.split, Path("/proc/net/unix").read_text().splitlines())
    return any(line[3] == LISTENING and line[7:] == [str(socket)] for line in lines)
