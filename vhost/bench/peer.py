# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The backends that are compared: how the command line names them, and their processes."""

import os
import shlex
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from vhost.errors import VhostError

from .known import COMMANDS, FLAGS, IMAGE, SOCKET, write_image

__all__ = ("Peer", "PeerError", "Running", "read_peers")

_START: Final = 10.0  # seconds for a socket to be there
_STOP: Final = 5.0
_TAIL: Final = 3
# What a peer's own load differs in: fields of Workload, with hyphens.
_OWN: Final = ("indirect", "packed", "in-order", "inflight", "dirty-log", "python")
_FLAGS: Final = ("spin", "verify", "fill", *_OWN)


class PeerError(VhostError):
    """A backend could not be started, or is gone."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A backend to compare.

    :ivar command: with ``@SOCKET@``, and ``@IMAGE@`` for a disk made for it; empty if it runs already.
    :ivar path: of its socket, if it runs.
    :ivar spin: it never sleeps, so it is stopped while it is not its turn.
    :ivar own: words for fields of the workload that are true for this peer alone, to compare a backend
        with itself.
    :ivar verify: each of its sectors begins with its number; so it is with a disk made for it.
    :ivar fill: its disk is empty: the numbers are written before the first round.
    """

    name: str
    command: tuple[str, ...] = ()
    path: str = ""
    spin: bool = False
    verify: bool = False
    fill: bool = False
    own: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, device: str, more: Mapping[str, "Peer"] | None = None) -> "Peer":
        """``NAME[:FLAG...]=COMMAND``, ``NAME=@PATH``, or a well-known name, also with flags.

        :param more: peers by name that count as well-known, such as those of :func:`read_peers`.
        :raises ValueError: it is none of these.
        """
        left, equals, command = text.partition("=")
        name, *flags = left.split(":")
        if not name or not name.isprintable() or "/" in name:
            raise ValueError(
                f"{text!r}: a peer is NAME=COMMAND, NAME=@PATH, or one of {_names(device, more)}"
            )
        if wrong := [flag for flag in flags if flag not in _FLAGS]:
            raise ValueError(f"{name}: unknown flag {wrong[0]!r}; there are {', '.join(_FLAGS)}")
        if equals:
            return cls._of(name, command)._with(flags)
        if more and name in more:
            known = more[name]
        elif name in COMMANDS[device]:
            known = cls(name, COMMANDS[device][name])._with(FLAGS.get(name, ()))
        else:
            raise ValueError(f"{name!r} is none of {_names(device, more)}, nor NAME=COMMAND")
        full = "-".join((name, *(flag for flag in _OWN if flag in flags)))
        return replace(known, name=full)._with(flags)

    @classmethod
    def _of(cls, name: str, command: str) -> Self:
        if command.startswith("@") and not command.startswith((SOCKET, IMAGE)):
            return cls(name, path=command[1:])
        if SOCKET not in command:
            raise ValueError(f"{name}: the command does not say where {SOCKET} goes")
        try:
            return cls(name, tuple(shlex.split(command)))
        except ValueError as error:
            raise ValueError(f"{name}: {error} in {command!r}") from None

    def _with(self, flags: Sequence[str]) -> Self:
        if "spin" in flags and not self.command:
            raise ValueError(
                f"{self.name}: only a peer that is started here can be stopped between its turns"
            )
        fill = self.fill or "fill" in flags
        return replace(
            self,
            spin=self.spin or "spin" in flags,
            verify=self.verify or fill or "verify" in flags or IMAGE in " ".join(self.command),
            fill=fill,
            own=tuple(flag for flag in _OWN if flag in flags or flag in self.own),
        )


def read_peers(path: str | os.PathLike[str], device: str) -> dict[str, Peer]:
    """The peers of a file in TOML: a table for each device, in which ``"NAME[:FLAG...]" = "COMMAND"``.

    :raises ValueError: the file has something else.
    :raises OSError: it cannot be read.
    """
    try:
        tables = tomllib.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    table = tables.get(device, {})
    if not isinstance(table, dict) or not all(isinstance(command, str) for command in table.values()):
        raise ValueError(f'{path}: the table of {device} has lines NAME = "COMMAND", and nothing else')
    peers = [Peer.parse(f"{name}={command}", device) for name, command in table.items()]
    return {peer.name: peer for peer in peers}


def _names(device: str, more: Mapping[str, Peer] | None) -> str:
    return ", ".join((*COMMANDS[device], *(more or ()))) or "none"


@dataclass(slots=True)
class Running:
    """A peer while it runs."""

    peer: Peer
    socket: str
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    @contextmanager
    def start(cls, peer: Peer, folder: Path, cpu: int | None, image: Path | None) -> Iterator[Self]:
        """Run `peer`, with socket and log in `folder`, on one processor if `cpu` says so.

        :param image: the disk, written if there is none yet.
        :raises PeerError: it did not start.
        """
        if not peer.command:
            yield cls(peer, peer.path)
            return
        path, log = folder / f"{peer.name}.sock", folder / f"{peer.name}.log"
        command = [word.replace(SOCKET, str(path)).replace(IMAGE, str(image)) for word in peer.command]
        if image is not None and not image.exists():
            write_image(image)
        with log.open("wb") as output, _on(cpu):
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=0,  # Ctrl-C is for us; what we started, we stop
                )
            except OSError as error:
                raise PeerError(f"{peer.name}: cannot run {command[0]}: {error.strerror}") from None
        running = cls(peer, str(path), log, process)
        try:
            running._await_socket()
            running.pause()
            yield running
        finally:
            running._stop()

    def _await_socket(self) -> None:
        deadline = time.monotonic() + _START
        while not Path(self.socket).is_socket():
            if (end := self.end(" before its socket was there")) is not None:
                raise PeerError(f"{self.peer.name}: {end}")
            if time.monotonic() > deadline:
                raise PeerError(
                    f"{self.peer.name}: no socket at {self.socket} within {_START:g} s{self._tail()}"
                )
            time.sleep(0.005)

    def end(self, when: str = "") -> str | None:
        """How it ended, in words, None while it runs or nobody knows."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return how + when + self._tail()

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL:] if self.log else []
        return "; its last words: " + " | ".join(lines) if lines else ""

    def pause(self) -> None:
        """Its turn is over: stop it if it spins."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Its turn comes."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self.peer.spin and self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def _stop(self) -> None:
        assert self.process is not None
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(_STOP)
        except BaseException as error:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise


@contextmanager
def _on(cpu: int | None) -> Iterator[None]:
    """What is started meanwhile stays on one processor: children inherit it."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
