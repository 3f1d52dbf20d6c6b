# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guests on a 64-bit ARM machine: kernel and busybox of Debian, and QEMU of bookworm, from the cache."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab import archive
from tests.lab.guest import Guest
from tests.lab.kernel import debian_kernel
from tests.lab.peers import Peer, asked
from tests.lab.process import Process
from tests.lab.root import write_root
from tests.lab.userland import Userland

__all__ = ("LINUX_AARCH64", "MACHINE", "QEMU_AARCH64", "busybox", "guest", "qemu")

MACHINE, SUITE = "arm64", "bookworm"  # as Debian calls it
MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng")
PROGRAM = "usr/bin/qemu-system-aarch64"
PORT = "hvc0"


@functools.cache
def qemu() -> Userland:
    """The userland whose QEMU emulates the machine.

    :raises Missing: this machine's apt cannot provide it.
    """
    return Userland(archive.closure(("qemu-system-arm",), SUITE))


def busybox() -> Path:
    """The guest's programs.

    :raises Missing: this machine's apt cannot provide them.
    """
    return archive.unpacked(["busybox-static"], SUITE, MACHINE) / "bin/busybox"


QEMU_AARCH64 = Peer("QEMU for aarch64", lambda: asked([*qemu().command(PROGRAM, "--version")]))
LINUX_AARCH64 = Peer("Linux for aarch64", lambda: debian_kernel(MACHINE).version.partition("-")[0])


class _Guest(Guest):
    PORT = ("-device", "virtio-serial-pci", "-device", "virtconsole,chardev=commands")


@contextmanager
def guest(devices: Sequence[str], logs: Path, work: Path, witnesses: Sequence[Process]) -> Iterator[Guest]:
    """A guest, which must end in order, and QEMU without a word.

    :param work: folder for its root.
    :raises Missing: this machine's apt cannot provide a part.
    """
    kernel, root = debian_kernel(MACHINE), work / "aarch64.cpio"
    write_root(kernel, root, MODULES, busybox())
    argv = (
        *map(str, qemu().command(PROGRAM, "-L", qemu().root / "usr/share/qemu")),
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "cortex-a57"),
        *("-machine", "virt,memory-backend=memory", "-m", "256"),
        *("-object", "memory-backend-memfd,id=memory,size=256M,share=on"),
        *("-global", "virtio-net-pci.romfile="),  # nobody boots from a card
        *("-kernel", str(kernel.image), "-initrd", str(root)),
        *("-append", f"console=ttyAMA0 lab.port=/dev/{PORT} loglevel=5 panic=-1 oops=panic"),
        *devices,
    )
    with _Guest(argv, logs, witnesses) as it:
        yield it
        assert it.power_off() == 0, it.process.tail()
        assert it.process.output() == ""
