# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest with our daemons as its devices: a random number generator, a disk, and a disk it may only read."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import guest
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import Guest
from tests.lab.prerequisites import tool

__all__ = ("Machine", "reconnecting", "running", "vhost_user")

SEED = 20240229
DISK_SERIAL, READ_ONLY_SERIAL = "VHOSTLAB", "VHOSTRO"
DISK_BYTES, READ_ONLY_BYTES = 96 << 20, 8 << 20
QUEUES = 2


@dataclass(frozen=True, slots=True)
class Machine:
    """The guest, the daemons behind it, and the images behind those.

    Both images are full of random bytes when the guest boots.
    """

    guest: Guest
    rng: Daemon
    disk: Daemon
    read_only: Daemon
    image: Path
    read_only_image: Path

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        """All our processes."""
        return self.rng, self.disk, self.read_only

    def device(self, serial: str = DISK_SERIAL) -> str:
        """The guest's name for a disk, ``vda`` say."""
        return self.guest.run(f"cd /sys/block; grep -lx {serial} vd*/serial").partition("/")[0]

    def finish(self) -> None:
        """Ends everything in order, and judges it.

        :raises AssertionError: QEMU or a daemon ends with another status than 0 or has complained.
        """
        assert self.guest.power_off() == 0, f"QEMU failed:\n{self.guest.process.tail()}"
        for daemon in self.daemons:
            daemon.finish()
        assert self.guest.process.output() == "", f"QEMU complains:\n{self.guest.process.tail()}"


def vhost_user(device: str, socket: Path, name: str) -> tuple[str, ...]:
    """QEMU's arguments for one vhost-user device.

    :param device: QEMU's name of the device, with its properties.
    """
    return "-chardev", f"socket,id={name},path={socket}", "-device", f"{device},chardev={name}"


def reconnecting(socket: Path, name: str) -> str:
    """QEMU's argument of ``-chardev`` for a socket to which it connects again, as its version has it."""
    text = subprocess.run([tool("qemu-system-x86_64"), "--version"], capture_output=True, text=True).stdout
    version = re.search(r"version (\d+)\.(\d+)", text)
    assert version, text
    new = tuple(map(int, version.groups())) >= (9, 2)
    return f"socket,id={name},path={socket},{'reconnect-ms=100' if new else 'reconnect=1'}"


@contextlib.contextmanager
def running(kernel: Path, root: Path, *, work: Path, logs: Path) -> Iterator[Machine]:
    """Starts the daemons and boots the guest. Afterwards nothing of it runs any more.

    :param work: an empty folder with a short path, for sockets and images.
    :param logs: a folder for the logs.
    """
    image, read_only_image = work / "disk.img", work / "read-only.img"
    image.write_bytes(os.urandom(DISK_BYTES))
    read_only_image.write_bytes(os.urandom(READ_ONLY_BYTES))
    disk_options = ("--blk-file", image, "--serial", DISK_SERIAL, "--num-queues", str(QUEUES))
    read_only_options = ("--blk-file", read_only_image, "--serial", READ_ONLY_SERIAL, "--read-only")
    with contextlib.ExitStack() as stack:

        def start(name: str, script: str, *options: str | os.PathLike[str]) -> Daemon:
            return stack.enter_context(ours(script, *options, name=name, work=work, logs=logs))

        rng = start("rng", "vhost-rng", "--seed", str(SEED))
        disk = start("disk", "vhost-blk", *disk_options)
        read_only = start("read-only", "vhost-blk", *read_only_options)
        devices: Sequence[str] = (
            *vhost_user("vhost-user-rng-pci", rng.socket, "rng"),
            *vhost_user(f"vhost-user-blk-pci,num-queues={QUEUES}", disk.socket, "disk"),
            *vhost_user("vhost-user-blk-pci,num-queues=1", read_only.socket, "read-only"),
        )
        argv = (*guest.machine(kernel, root), *devices)
        booted = stack.enter_context(Guest(argv, logs, witnesses=(rng, disk, read_only)))
        yield Machine(booted, rng, disk, read_only, image, read_only_image)
