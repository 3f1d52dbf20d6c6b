# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guests on a big-endian machine: Debian's kernel and busybox for s390x, and bookworm's QEMU, from the cache.

A guest boots in some three seconds. Its network card is either as virtio 1.x has it, or a legacy one, whose
rings and headers are big-endian.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab import archive
from tests.lab.guest import Guest
from tests.lab.kernel import Kernel, debian_kernel
from tests.lab.peers import Peer, asked
from tests.lab.process import Process
from tests.lab.root import write_root
from tests.lab.userland import Userland

__all__ = ("LINUX_S390X", "MACHINE", "QEMU_S390X", "busybox", "card", "guest", "qemu", "write_s390x_root")

MACHINE, SUITE = "s390x", "bookworm"
MODULES = ("virtio_console", "virtio_blk", "virtio_net")
PROGRAM = "usr/bin/qemu-system-s390x"
PORT = "hvc0"


@functools.cache
def qemu() -> Userland:
    """The userland whose QEMU emulates the machine.

    :raises Missing: this machine's apt cannot provide it.
    """
    return Userland(archive.closure(("qemu-system-misc",), SUITE, without_other_machines))


def without_other_machines(root: Path) -> None:
    # The package has emulators of many.
    for program in (root / PROGRAM).parent.glob("qemu-system-*"):
        if program.name != Path(PROGRAM).name:
            program.unlink()


def busybox() -> Path:
    """The guests' programs.

    :raises Missing: this machine's apt cannot provide them.
    """
    return archive.unpacked(["busybox-static"], SUITE, MACHINE) / "bin/busybox"


QEMU_S390X = Peer("QEMU for s390x", lambda: asked([*qemu().command(PROGRAM), "--version"]))
LINUX_S390X = Peer("Linux for s390x", lambda: debian_kernel(MACHINE).version.partition("-")[0])


def write_s390x_root(target: Path) -> Kernel:
    """Writes the guests' root, and returns their kernel.

    :raises Missing: this machine's apt cannot provide a part.
    """
    kernel = debian_kernel(MACHINE)
    write_root(kernel, target, MODULES, busybox())
    return kernel


def card(socket: Path, number: int, *, legacy: bool) -> tuple[str, ...]:
    """QEMU's arguments for a network card.

    :param socket: where its back-end listens.
    :param number: last byte of its address.
    """
    device = f"virtio-net-ccw,netdev=card,mac=52:54:00:00:00:{number:02x}"
    return (
        *("-chardev", f"socket,id=net,path={socket}", "-netdev", "vhost-user,id=card,chardev=net"),
        *("-device", device + ",max_revision=0" * legacy),
    )


class _Guest(Guest):
    PORT = ("-device", "virtio-serial-ccw", "-device", "virtconsole,chardev=commands")


@contextmanager
def guest(
    kernel: Path, root: Path, devices: Sequence[str], logs: Path, witnesses: Sequence[Process]
) -> Iterator[Guest]:
    """A guest, which must end in order, and QEMU without a word."""
    logs.mkdir()
    argv = (
        *map(str, qemu().command(PROGRAM, "-L", qemu().root / "usr/share/qemu")),
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "max"),
        *("-machine", "s390-ccw-virtio,memory-backend=memory", "-m", "256"),
        *("-object", "memory-backend-memfd,id=memory,size=256M,share=on"),
        *("-kernel", str(kernel), "-initrd", str(root)),
        *("-append", f"console=ttysclp0 lab.port=/dev/{PORT} loglevel=5 panic=-1 oops=panic"),
        *devices,
    )
    with _Guest(argv, logs, witnesses) as it:
        yield it
        assert it.power_off() == 0, it.process.tail()
        assert it.process.output() == ""
