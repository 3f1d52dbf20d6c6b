# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Tools that copy disks through libblkio: qemu-img, and nbdcopy through nbdkit, from the cache."""

import contextlib
import functools
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.lab.backends import listens
from tests.lab.daemons import START_SECONDS, Daemon
from tests.lab.peers import Peer, asked
from tests.lab.userland import LIBRARIES, Userland, debian

__all__ = ("NBDCOPY", "NBDKIT", "QEMU_IMG", "nbdcopy", "nbdkit", "qemu_img", "userlands")

SUITE = "trixie"
SECONDS = 120


@functools.cache
def qemu() -> Userland:
    return debian(["qemu-utils", "qemu-block-extra"], SUITE)


@functools.cache
def nbd() -> Userland:
    return debian(["nbdkit", "libnbd-bin"], SUITE)


def userlands() -> tuple[Userland, ...]:
    """Where the tools are, with all that they need.

    :raises Missing: this machine's apt cannot provide them.
    """
    return qemu(), nbd()


QEMU_IMG = Peer("qemu-img", lambda: asked(qemu().command("usr/bin/qemu-img", "--version")))
NBDCOPY = Peer("nbdcopy", lambda: asked(nbd().command("usr/bin/nbdcopy", "--version"), r"nbdcopy (\d[\w.]*)"))
NBDKIT = Peer("nbdkit", lambda: asked(nbd().command("usr/bin/nbdkit", "--version"), r"nbdkit (\d[\w.]*)"))


def run(
    argv: list[str | os.PathLike[str]], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **(environment or {})},
    )
    assert (done.returncode, done.stderr) == (0, ""), (
        f"{argv[3:]} ended with {done.returncode}: {done.stderr}"
    )
    return done


def qemu_img(*arguments: str | os.PathLike[str]) -> str:
    """Runs qemu-img with its driver for libblkio; returns what it says.

    :raises AssertionError: its status is not 0, or it complains.
    """
    modules = {"QEMU_MODULE_DIR": str(qemu().root / LIBRARIES / "qemu")}
    return run(qemu().command("usr/bin/qemu-img", *arguments), modules).stdout


def nbdcopy(*arguments: str | os.PathLike[str]) -> None:
    """Runs nbdcopy.

    :raises AssertionError: its status is not 0, or it complains.
    """
    run(nbd().command("usr/bin/nbdcopy", *arguments))


@contextlib.contextmanager
def nbdkit(disk: Path, place: Path, log: Path) -> Iterator[str]:
    """nbdkit that serves a vhost-user disk.

    :param disk: the disk's socket.
    :param place: path for its own socket.
    :returns: the URI of what it serves.
    """
    plugin = nbd().root / LIBRARIES / "nbdkit/plugins/nbdkit-blkio-plugin.so"
    options = ("--foreground", "--unix", place, plugin, "virtio-blk-vhost-user", f"path={disk}")
    with Daemon(nbd().command("usr/bin/nbdkit", *options), log) as daemon:
        daemon.name, daemon.socket = "nbdkit", place
        deadline = time.monotonic() + START_SECONDS
        while not listens(place):
            assert daemon.running, f"nbdkit ended with {daemon.wait(0)}:\n{daemon.tail()}"
            assert time.monotonic() < deadline, f"nbdkit does not listen:\n{daemon.tail()}"
            time.sleep(0.01)
        yield f"nbd+unix:///?socket={place}"
        daemon.stop()
        assert not daemon.output(), f"nbdkit complains:\n{daemon.tail()}"
        place.unlink()
