# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU's control socket, as far as the lab needs it: one command at a time, events skipped.

The protocol: JSON objects, one per line; docs/interop/qmp-spec.rst of QEMU.
"""

import json
import socket
from typing import Any

__all__ = ("Qmp",)


class Qmp:
    """The client's end of a QMP connection. The greeting is awaited.

    :raises OSError: no answer within ``seconds``.
    """

    def __init__(self, connection: socket.socket, seconds: float = 20) -> None:
        connection.settimeout(seconds)
        self._stream = connection.makefile("rw", encoding="utf-8")
        self._receive("QMP")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Runs a command.

        :param arguments: its own, with ``_`` for each ``-`` of a name.
        :returns: its result.
        :raises OSError: QEMU refuses it, is gone, or is silent.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._stream.write(json.dumps({"execute": command, "arguments": named}) + "\n")
        self._stream.flush()
        return self._receive("return")

    def await_event(self, name: str, **data: Any) -> None:
        """Waits for an event with these data, among others; those that came before an answer are gone.

        :raises OSError: it does not come in time.
        """
        while True:
            event = self._receive("event", whole=True)
            told = event.get("data", {})
            if event["event"] == name and all(told.get(key) == value for key, value in data.items()):
                return

    def close(self) -> None:
        """Closes the connection."""
        self._stream.close()

    def _receive(self, kind: str, *, whole: bool = False) -> Any:
        for line in self._stream:
            answer = json.loads(line)
            if "error" in answer:
                raise OSError(f"QEMU refuses: {answer['error'].get('desc', answer)}")
            if kind in answer:
                return answer if whole else answer[kind]
        raise ConnectionResetError("QEMU closed its control socket")
