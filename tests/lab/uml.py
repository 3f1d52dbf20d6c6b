# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""User-mode Linux: a kernel that is a program of this machine, with vhost-user sockets for virtio devices.

Debian's packages lie in the cache, each with the C library of its suite. A guest boots in about a second. It
has one CPU, and drivers for network cards, disks, consoles, SCSI, sockets and file systems. Debian builds
none for random number generators.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import archive
from tests.lab.guest import Commanded
from tests.lab.kernel import Kernel, index_modules
from tests.lab.peers import Peer
from tests.lab.prerequisites import tool
from tests.lab.process import Process
from tests.lab.root import write_root
from tests.lab.userland import LIBRARIES

__all__ = ("SUITES", "UML", "Uml", "UmlGuest", "blk", "net", "running", "tools", "uml_kernel")

SUITES = ("trixie", "sid")  # of these, 6.12 and newer
MODULES = ("virtio_blk", "virtio_net", "8021q")
# What no driver says of a device that keeps to the rules, nor the kernel.
COMPLAINT = re.compile(r"virtio|WARNING:|BUG:|Call Trace|I/O error|eth\d")
END_SECONDS = 10
MODULES_FOLDER = "usr/lib/modules"

# The program starts itself again, so it must be what the kernel runs, not an argument of its loader: it
# finds the loader of its suite in a mount namespace of its own. In a process namespace, all it has started
# ends with it. The first process there is the shell, because signals, abort() too, do not end that one. A
# panic ends the program's whole group of processes, which is therefore not the lab's.
SCRIPT = f"""\
mount --bind "$0/usr/lib64/ld-linux-x86-64.so.2" /lib64/ld-linux-x86-64.so.2
export LD_LIBRARY_PATH="$0/{LIBRARIES}"
"$0/usr/bin/linux.uml" "$@" || exit
"""


@functools.cache
def uml_kernel(suite: str) -> Kernel:
    """The user-mode Linux of one of Debian's suites.

    :raises Missing: this machine's apt cannot provide it.
    """
    root = archive.closure(["user-mode-linux"], suite, where_modules_are)
    kernel = Kernel(next((root / MODULES_FOLDER).iterdir()).name, root)
    index_modules(kernel)
    return kernel


UML = Peer("user-mode Linux", lambda: ", ".join(uml_kernel(suite).version for suite in SUITES))


def where_modules_are(root: Path) -> None:
    # Debian has them in a folder where no tool looks for them.
    (root / MODULES_FOLDER).symlink_to("uml/modules")


def tools() -> Path:
    """A userland of programs that a guest can use, ``ethtool`` for now.

    :raises Missing: this machine's apt cannot provide it.
    """
    return archive.closure(["ethtool"], SUITES[0])


@dataclass(frozen=True, slots=True)
class Uml:
    """A user-mode Linux, and the root that its guests boot."""

    kernel: Kernel
    root: Path

    @classmethod
    def made(cls, suite: str, root: Path) -> "Uml":
        """That of a suite; its root is written to ``root``.

        :raises Missing: a part is not to be had.
        """
        kernel = uml_kernel(suite)
        write_root(kernel, root, MODULES)
        return cls(kernel, root)


def blk(socket: Path) -> str:
    """The argument for a disk."""
    return f"virtio_uml.device={socket}:2"


def net(socket: Path) -> str:
    """The argument for a network card."""
    return f"virtio_uml.device={socket}:1"


class UmlGuest(Commanded):
    """A guest of user-mode Linux.

    :param arguments: for its command line; :func:`blk` and :func:`net` make some.
    :param memory: MiB.
    :param logs: folder for console.log, which has the program's own words too.
    :param witnesses: as for :class:`Commanded`.
    :raises LostGuest: it does not come up.
    """

    def __init__(
        self,
        uml: Uml,
        arguments: Sequence[str],
        logs: Path,
        witnesses: Sequence[Process] = (),
        *,
        memory: int = 128,
    ) -> None:
        self._uml = uml
        self._arguments = (f"mem={memory}M", *arguments)
        super().__init__(logs, witnesses)

    def _start(self, logs: Path, commands: int) -> Process:
        apart = ("--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", SCRIPT)
        argv = (
            # Where addresses are random, memory is lost to the gaps between them.
            *(tool("setarch"), "--addr-no-randomize", tool("setsid")),
            *(tool("unshare"), *apart, self._uml.kernel.root),
            *(f"initrd={self._uml.root}", f"uml_dir={logs}", *self._arguments),
            *("con=null", "con0=null,fd:1", "ssl=null", f"ssl1=fd:{commands},fd:{commands}"),
            *("loglevel=5", "panic=-1", "oops=panic"),
        )
        process = Process(argv, self.console, fds=(commands,))
        process.name = "user-mode Linux"
        return process

    def close(self) -> None:
        """Kills the guest if it still runs, and waits until the last of its processes has gone."""
        self.process.kill()
        with contextlib.suppress(OSError):
            self._commands.settimeout(END_SECONDS)
            while self._commands.recv(4096):
                pass
        super().close()

    def tool(self, command: str) -> str:
        """Runs a program of :func:`tools`, in whose folder of this machine the guest looks."""
        root = tools()
        mounted = "grep -q ' /mnt hostfs' /proc/mounts"
        self.run(f"{mounted} || mount -t hostfs -o {root} none /mnt")
        return self.run(f"chroot /mnt {command}")

    def features(self, device: str) -> list[bool]:
        """Which features the driver of a device has taken, by their numbers.

        :param device: ``vda`` or ``eth0``, say.
        """
        return [bit == "1" for bit in self.run(f"cat /sys/class/*/{device}/device/features")]


@contextlib.contextmanager
def running(
    uml: Uml, arguments: Sequence[str], logs: Path, *witnesses: Process, memory: int = 128
) -> Iterator[UmlGuest]:
    """A guest that must end in order, and its kernel without having complained.

    :param logs: a folder that is made.
    """
    logs.mkdir()
    with UmlGuest(uml, arguments, logs, witnesses, memory=memory) as guest:
        yield guest
        if guest.lost:
            return
        assert guest.power_off() == 0, guest.process.tail()
        said = guest.process.output().partition("reboot: Power down")[0]  # then it takes devices from drivers
        complaints = [line for line in said.splitlines() if COMPLAINT.search(line)]
        assert not complaints, "\n".join(complaints)
