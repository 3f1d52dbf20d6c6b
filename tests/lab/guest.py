# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A running guest: QEMU without KVM, and the command port of the lab's own root (see ``guest-init.sh``).

Two things can go wrong, and they are told apart: a command fails (:class:`CommandFailed`), or the guest
crashes, hangs or vanishes (:class:`LostGuest`, with the last words of its console and of QEMU).
"""

import base64
import select
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.console import last_words
from tests.lab.peers import Peer, asked
from tests.lab.prerequisites import tool
from tests.lab.process import Process
from tests.lab.qmp import Qmp

__all__ = ("QEMU", "CommandFailed", "Guest", "LostGuest", "machine")

QEMU = Peer("QEMU", lambda: asked([tool("qemu-system-x86_64"), "--version"]))

BOOT_SECONDS = 60
COMMAND_SECONDS = 30
GRACE_SECONDS = 5  # the guest itself kills a command after its time; later than that, the guest is lost


class CommandFailed(AssertionError):
    """A command in the guest ended with another status than 0."""

    def __init__(self, command: str, status: int, output: str) -> None:
        super().__init__(f"in the guest, `{command}` ended with status {status}:\n{output}")
        self.status = status
        self.output = output


class LostGuest(Exception):
    """The guest crashed, hangs, rebooted unasked, or QEMU ended: no statement about the command."""


def machine(kernel: Path, root: Path, *, memory: int = 512, cpus: int = 2, arguments: str = "") -> list[str]:
    """QEMU's command line for a guest whose memory other processes can map.

    :param memory: MiB.
    :param arguments: more for the kernel's command line.
    """
    return [
        tool("qemu-system-x86_64"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "max"),
        *("-machine", "q35,memory-backend=memory", "-m", str(memory), "-smp", str(cpus)),
        *("-object", f"memory-backend-memfd,id=memory,size={memory}M,share=on"),
        *("-kernel", str(kernel), "-initrd", str(root)),
        *("-append", f"console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off {arguments}".strip()),
    ]


class Guest:
    """A guest that has booted and takes commands. A context manager; leaving it kills QEMU.

    :param argv: QEMU's command line, from :func:`machine`, and the devices.
    :param logs: folder for console.log and qemu.log.
    :param witnesses: processes whose last words count too when the guest is lost.
    :raises LostGuest: it does not come up.
    """

    def __init__(self, argv: Sequence[str], logs: Path, witnesses: Sequence[Process] = ()) -> None:
        self.started = time.monotonic()
        self.lost = False
        self._witnesses = witnesses
        self.console = logs / "console.log"
        commands, far_commands = socket.socketpair()
        control, far_control = socket.socketpair()
        with far_commands, far_control:
            ports = (
                *("-serial", f"file:{self.console}"),
                *(
                    "-chardev",
                    f"socket,id=commands,fd={far_commands.fileno()}",
                    "-serial",
                    "chardev:commands",
                ),
                *("-chardev", f"socket,id=control,fd={far_control.fileno()}"),
                *("-mon", "chardev=control,mode=control"),
            )
            fds = (far_commands.fileno(), far_control.fileno())
            self.process = Process((*argv, *ports), logs / "qemu.log", fds=fds)
        self._commands, self._control = commands, control
        self._received = bytearray()
        try:
            self.boot = self._ready("booting")
            self._qmp = Qmp(control)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        """Since QEMU was started."""
        return time.monotonic() - self.started

    def run(self, command: str, seconds: int = COMMAND_SECONDS) -> str:
        """Runs a shell command in the guest.

        :param command: at most 2000 bytes.
        :returns: its output without the last newline.
        :raises CommandFailed: its status is not 0; 137 means that it took more than ``seconds``.
        :raises LostGuest: the guest does not answer.
        """
        self._send(command, seconds)
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        doing = f"running `{command}`"
        word, *rest = self._line(deadline, doing).split()
        if word != "done":
            raise self._lost(f"rebooted unasked while {doing}")
        status, size = map(int, rest)
        output = self._bytes(size, deadline, doing).decode(errors="replace").removesuffix("\n")
        if status != 0:
            raise CommandFailed(command, status, output)
        return output

    def reboot(self) -> None:
        """The guest's own reboot, without syncing or unmounting anything; returns when it is up again."""
        self._send("reboot -f", COMMAND_SECONDS)
        self._again("rebooting")

    def reset(self) -> None:
        """What a reset button does; returns when the guest is up again."""
        self._qmp.execute("system_reset")
        self._again("coming back from a reset")

    def power_off(self) -> int:
        """Ends the guest in order.

        :returns: QEMU's exit status.
        """
        self._send("poweroff -f", COMMAND_SECONDS)
        return self.process.wait(COMMAND_SECONDS)

    def close(self) -> None:
        """Kills QEMU if it still runs."""
        self.process.kill()
        self._commands.close()
        self._control.close()

    def _again(self, doing: str) -> None:
        boot = self._ready(doing)
        if boot == self.boot:
            raise self._lost(f"is still in the same boot after {doing}")
        self.boot = boot

    def _ready(self, doing: str) -> str:
        word, *rest = self._line(time.monotonic() + BOOT_SECONDS, doing).split()
        if word != "ready":
            raise self._lost(f"said {word!r}, not 'ready', while {doing}")
        return rest[0]

    def _send(self, command: str, seconds: int) -> None:
        line = f"{seconds} {base64.b64encode(command.encode()).decode()}\n".encode()
        if len(line) > 3000:  # the guest's terminal holds 4096 bytes
            raise ValueError(f"{len(line)} bytes are too long a command")
        try:
            self._commands.sendall(line)
        except BrokenPipeError:
            raise self._lost("is gone") from None

    def _line(self, deadline: float, doing: str) -> str:
        while (end := self._received.find(b"\n")) < 0:
            self._receive(deadline, doing)
        line = bytes(self._received[:end]).decode(errors="replace")
        del self._received[: end + 1]
        return line

    def _bytes(self, size: int, deadline: float, doing: str) -> bytes:
        while len(self._received) < size:
            self._receive(deadline, doing)
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _receive(self, deadline: float, doing: str) -> None:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([self._commands], [], [], left)[0]:
            raise self._lost(f"does not answer, {doing}")
        data = self._commands.recv(65536)
        if not data:
            raise self._lost(f"ended with QEMU (status {self.process.wait(10)}) while {doing}")
        self._received += data

    def _lost(self, what: str) -> LostGuest:
        self.lost = True
        text = [f"after {self.seconds:.1f} s the guest {what}", *last_words(self.console)]
        for process in (self.process, *self._witnesses):
            text += [f"{process.log.name}:", process.tail()]
        return LostGuest("\n".join(text))
