# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Daemons of the installed package in the control domain, started and ended as a service manager does it."""

import contextlib
import os
import select
import socket
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.lab import daemons

__all__ = ("Daemon", "daemon")

SECONDS = 120  # for a start or an end; the processor is emulated


class Daemon(daemons.Daemon):
    """A daemon that takes its time."""

    def stop(self, seconds: float = SECONDS) -> int:
        """Asks it to end (SIGTERM) and waits."""
        return super().stop(seconds)


@contextlib.contextmanager
def daemon(
    script: str,
    *options: str | os.PathLike[str],
    work: Path,
    finish: Callable[[Daemon], None] = Daemon.finish,
) -> Iterator[Daemon]:
    """A daemon that listens. It must leave in order and without complaints, unless the block has failed.

    :param script: its console script, ``vhost-rng`` or ``vhost-blk``.
    :param work: folder for its socket and its log; the path must be short.
    :param finish: how it is ended, and judged.
    """
    # Not where the interpreter is: Debian's has its own scripts elsewhere than those of pip.
    program = Path(sysconfig.get_path("scripts"), script)
    path = work / f"{script}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind("")
        environment = {"NOTIFY_SOCKET": "@" + notices.getsockname()[1:].decode()}
        argv = [program, "-v", "--socket-path", path, *options]
        with Daemon(argv, work / f"{script}.log", environment=environment) as running:
            running.socket = path
            select.select([notices, running.end_fd], [], [], SECONDS)
            daemons.await_ready(running, notices)
            try:
                yield running
            except BaseException as error:
                error.add_note(f"{script}:\n{running.tail()}")
                raise
            finish(running)
