# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A running guest: the command port of the lab's own root (see ``guest-init.sh``), and QEMU without KVM.

Two things can go wrong, and they are told apart: a command fails (:class:`CommandFailed`), or the guest
crashes, hangs or vanishes (:class:`LostGuest`, with the last words of its console and of QEMU).
"""

import abc
import base64
import functools
import select
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tests.lab.console import last_words, stalled
from tests.lab.peers import Peer, asked
from tests.lab.prerequisites import tool
from tests.lab.process import Process
from tests.lab.qmp import Qmp

__all__ = ("QEMU", "CommandFailed", "Commanded", "Guest", "LostGuest", "Stalled", "machine")

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


class Stalled(LostGuest):
    """The guest hangs because the emulator lost a timer of it, as its kernel says: nobody's fault here."""


def machine(
    kernel: Path,
    root: Path,
    *,
    memory: int = 512,
    room: int = 0,
    cpus: int = 2,
    arguments: str = "",
    board: str = "q35",
) -> list[str]:
    """QEMU's command line for a guest whose memory other processes can map.

    :param memory: MiB.
    :param room: MiB that can be plugged in addition.
    :param arguments: more for the kernel's command line.
    :param board: QEMU's name of the machine.
    """
    size = f"{memory}M,slots=8,maxmem={memory + room}M" if room else str(memory)
    return [
        tool("qemu-system-x86_64"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "max"),
        *("-machine", f"{board},memory-backend=memory", "-m", size, "-smp", str(cpus)),
        *("-object", f"memory-backend-memfd,id=memory,size={memory}M,share=on"),
        *("-kernel", str(kernel), "-initrd", str(root)),
        *("-append", f"console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off {arguments}".strip()),
    ]


class Commanded(abc.ABC):
    """A guest that has booted the lab's root and takes commands. A context manager; leaving it kills it.

    :param logs: folder for console.log and the log of the program that runs the guest.
    :param witnesses: processes whose last words count too when the guest is lost.
    :raises LostGuest: it does not come up.
    """

    def __init__(self, logs: Path, witnesses: Sequence[Process] = ()) -> None:
        self.started = time.monotonic()
        self.lost = False
        self._witnesses = witnesses
        self.console = logs / "console.log"
        self._console_start = 0  # of the present boot
        self._received = bytearray()
        self._commands, far = socket.socketpair()
        with far:
            self.process = self._start(logs, far.fileno())
        try:
            self.boot = self._up()
        except BaseException:
            self.close()
            raise

    @abc.abstractmethod
    def _start(self, logs: Path, commands: int) -> Process:
        # The program that runs the guest; its second serial line is the descriptor `commands`.
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        """Since the guest was started."""
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

    def power_off(self) -> int:
        """Ends the guest in order.

        :returns: the exit status of the program that runs it.
        """
        self._send("poweroff -f", COMMAND_SECONDS)
        return self.process.wait(COMMAND_SECONDS)

    def close(self) -> None:
        """Kills the guest if it still runs."""
        self.process.kill()
        self._commands.close()

    def _up(self) -> str:
        # The boot in which it is ready.
        return self._ready("booting")

    def _again(self, doing: str) -> None:
        boot = self._ready(doing)
        if boot == self.boot:
            raise self._lost(f"is still in the same boot after {doing}")
        self.boot = boot

    def _ready(self, doing: str) -> str:
        self._console_start = self.console.stat().st_size if self.console.exists() else 0
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
            silent = Stalled if stalled(self.console, self._console_start) else LostGuest
            raise self._lost(f"does not answer, {doing}", silent)
        data = self._commands.recv(65536)
        if not data:
            raise self._lost(f"ended with {self.process.name} (status {self.process.wait(10)}) while {doing}")
        self._received += data

    def _lost(self, what: str, kind: type[LostGuest] = LostGuest) -> LostGuest:
        self.lost = True
        text = [f"after {self.seconds:.1f} s the guest {what}"]
        if kind is Stalled:
            text.append("The emulator lost a timer of the guest:")
        text += last_words(self.console)
        for process in (self.process, *self._witnesses):
            if process.log != self.console:
                text += [f"{process.log.name}:", process.tail()]
        return kind("\n".join(text))


class Guest(Commanded):
    """A guest of QEMU.

    :param argv: QEMU's command line, from :func:`machine`, and the devices.
    :param logs: folder for console.log and qemu.log.
    :param witnesses: as for :class:`Commanded`.
    :raises LostGuest: it does not come up.
    """

    #: QEMU's arguments for the port by which it takes commands, the chardev ``commands``.
    PORT: ClassVar[tuple[str, ...]] = ("-serial", "chardev:commands")

    def __init__(self, argv: Sequence[str], logs: Path, witnesses: Sequence[Process] = ()) -> None:
        self._argv = argv
        self._control, self._far_control = socket.socketpair()
        super().__init__(logs, witnesses)

    @functools.cached_property
    def qmp(self) -> Qmp:
        """QEMU's control socket."""
        return Qmp(self._control)

    def reset(self) -> None:
        """What a reset button does; returns when the guest is up again."""
        self.qmp.execute("system_reset")
        self._again("coming back from a reset")

    def become(self, other: "Guest") -> None:
        """Ends, and goes on as another one, to which the guest has moved."""
        self.close()
        vars(self).update(vars(other))

    def storm(self, resets: int, pauses: Iterator[float]) -> None:
        """Many resets, wherever in its boot each finds the guest; returns when it is up after the last one.

        :param pauses: seconds before each.
        """
        for _, pause in zip(range(resets), pauses, strict=False):
            time.sleep(pause)
            self.qmp.execute("system_reset")
        # What earlier boots have said is here when all processors stand still, and nothing of the last one.
        self.qmp.execute("stop")
        while select.select([self._commands], [], [], 0)[0] and self._commands.recv(65536):
            pass
        self._received.clear()
        self.qmp.execute("system_reset")
        self.qmp.execute("cont")
        self._again("coming back from many resets")

    def close(self) -> None:
        """Kills QEMU if it still runs."""
        super().close()
        self._control.close()

    def _start(self, logs: Path, commands: int) -> Process:
        with self._far_control as control:
            ports = (
                *("-serial", f"file:{self.console}"),
                *("-chardev", f"socket,id=commands,fd={commands}", *self.PORT),
                *("-chardev", f"socket,id=control,fd={control.fileno()}"),
                *("-mon", "chardev=control,mode=control"),
            )
            return Process((*self._argv, *ports), logs / "qemu.log", fds=(commands, control.fileno()))
