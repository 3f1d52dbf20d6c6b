# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Daemons as a user starts them: the console scripts of the package under test, and QEMU's storage daemon."""

import contextlib
import os
import re
import select
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab.peers import Peer, asked
from tests.lab.prerequisites import console_script, tool
from tests.lab.process import Process

__all__ = ("STORAGE_DAEMON", "Daemon", "ours", "storage_daemon")

START_SECONDS = 20

STORAGE_DAEMON = Peer("qemu-storage-daemon", lambda: asked([tool("qemu-storage-daemon"), "--version"]))


class Daemon(Process):
    """A daemon that listens, or connects to one that does.

    :param socket: path of the socket that it serves.
    :param listens: it is the one that has made the socket.
    """

    socket: Path
    listens = True

    def finish(self, *, known: str | None = None) -> None:
        """Ends one of our daemons as a service manager would, and judges it.

        :param known: a pattern of the one complaint that it has to make.
        :raises AssertionError: its status is not 0, it has complained, or its socket is still there.
        """
        status = self.stop()
        assert status == 0, f"{self.name} ended with status {status} on SIGTERM:\n{self.tail()}"
        complaints = self.complaints()
        if known is None:
            assert not complaints, f"{self.name} complains:\n" + "\n".join(complaints)
        else:
            assert len(complaints) == 1, complaints
            assert re.search(known, complaints[0]), complaints
        if self.listens:
            assert not self.socket.exists(), f"{self.name} left its socket behind: {self.socket}"

    def complaints(self) -> list[str]:
        """The lines of the log that are warnings or worse, or no log lines at all (a traceback, say)."""
        harmless = re.compile(re.escape(self.name) + r": (?!(warning|error|critical): )")
        return [line for line in self.output().splitlines() if not harmless.match(line)]


@contextlib.contextmanager
def ours(
    script: str,
    *options: str | os.PathLike[str],
    work: Path,
    logs: Path,
    name: str,
    place: Path | None = None,
    prefix: Sequence[str] = (),
    connect: bool = False,
) -> Iterator[Daemon]:
    """One of our daemons, from "it listens" on; it is killed in the end unless it has ended before.

    :param script: ``vhost-rng``, ``vhost-blk`` or ``vhost-net``.
    :param work: folder for its socket; its path must be short.
    :param logs: folder for its log, ``name``.log.
    :param place: path of its socket; None: ``name``.sock in ``work``.
    :param prefix: a command that runs it, and becomes it.
    :param connect: connect to the socket, as soon as somebody listens there.
    """
    path = place or work / f"{name}.sock"
    with (
        tempfile.TemporaryDirectory(prefix="notices-", dir=work) as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices,
    ):
        address = f"{folder}/socket"  # unlike an abstract one, seen from other network namespaces too
        notices.bind(address)
        where = "--connect" if connect else "--socket-path"
        argv = [*prefix, console_script(script), "-v", where, path, *options]
        with Daemon(argv, logs / f"{name}.log", environment={"NOTIFY_SOCKET": address}) as daemon:
            daemon.name, daemon.socket, daemon.listens = script, path, not connect
            await_ready(daemon, notices)
            yield daemon


def await_ready(daemon: Daemon, notices: socket.socket) -> None:
    # Waits for the notice that a daemon gives to a service manager (sd_notify(3)), or for its end.
    while True:
        readable = select.select([notices, daemon.end_fd], [], [], START_SECONDS)[0]
        if notices in readable:
            if b"READY=1" in notices.recv(4096).split(b"\n"):
                return
        elif readable:
            raise AssertionError(
                f"{daemon.name} ended with {daemon.wait(0)}, not listening:\n{daemon.tail()}"
            )
        else:
            raise AssertionError(f"{daemon.name} is not ready after {START_SECONDS} s:\n{daemon.tail()}")


@contextlib.contextmanager
def storage_daemon(image: Path, *, queues: int, work: Path, logs: Path) -> Iterator[Daemon]:
    """QEMU's storage daemon that serves ``image``. The socket listens before the daemon runs."""
    program, path = tool("qemu-storage-daemon"), work / "qemu-storage-daemon.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        export = f"type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues}"
        argv = [
            *(program, "--blockdev", f"driver=file,node-name=disk,filename={image},discard=unmap"),
            *("--export", f"{export},addr.type=fd,addr.str={listener.fileno()}"),
        ]
        try:
            with Daemon(argv, logs / "qemu-storage-daemon.log", fds=(listener.fileno(),)) as daemon:
                daemon.socket = path
                yield daemon
        finally:
            path.unlink(missing_ok=True)
