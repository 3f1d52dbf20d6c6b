# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Messages of the control plane, encoded beforehand so that their sender costs next to nothing."""

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

from vhost._core import ffi, lib
from vhost.errors import VhostError
from vhost.protocol import Flag, Header, Message
from vhost.protocol.terms import Terms

__all__ = ("Script", "ScriptError", "Step")

_VERSION: Final = 1
_WORD: Final = 8  # bytes of an answer

#: A message, the descriptors that go with it, and whether it is answered: by a word, by success, or not.
Step = tuple[Message, Sequence[int], str]


class ScriptError(VhostError):
    """A message was refused, or answered wrongly, or not at all."""


class Script:
    """Messages to be sent one after the other.

    :param steps: what is answered says "word", what is acknowledged "ack", all else "".
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._names = [message.name for message, _, _ in steps]
        self._cdata = ffi.new("struct vh_bench_message[]", len(steps))
        self._keep: list[Any] = []
        self._at, self._value = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        for entry, (message, fds, answer) in zip(self._cdata, steps, strict=True):
            payload = message.encode(Terms())
            flags = _VERSION | (Flag.NEED_REPLY if answer == "ack" else 0)
            data = Header(message.request, flags, len(payload)).pack() + payload
            entry.data = self._pointer(data)
            entry.size = len(data)
            entry.answer, entry.must_succeed = _WORD if answer else 0, answer == "ack"
            entry.n_fds = len(fds)
            entry.fds[0 : len(fds)] = fds

    def _pointer(self, data: bytes) -> Any:
        pointer = ffi.new("uint8_t[]", list(data))
        self._keep.append(pointer)
        return pointer

    def play(self, sock: socket.socket) -> int:
        """Send all of it, and wait for each answer; returns the ticks that it took.

        :raises ScriptError: as its description says.
        :raises InterruptedError: a signal came.
        :raises OSError: as the system reports it.
        """
        ticks = int(lib.vh_bench_play(sock.fileno(), self._cdata, len(self._cdata), self._at, self._value))
        if ticks >= 0:
            return ticks
        name = self._names[self._at[0]]
        if ticks == -errno.EPERM:
            raise ScriptError(f"{name}: refused with code {self._value[0]}")
        if ticks == -errno.EPROTO:
            raise ScriptError(f"{name}: not the answer to it")
        if ticks == -errno.ETIMEDOUT:
            raise ScriptError(f"{name}: no answer")
        if ticks in (-errno.ECONNRESET, -errno.EPIPE):
            raise ScriptError(f"{name}: it closed the connection")
        raise OSError(-ticks, f"{name}: {os.strerror(-ticks)}")

    @property
    def value(self) -> int:
        """The last answer."""
        return int(self._value[0])
