# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU's control socket, as far as the lab needs it: one command at a time, events kept.

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
        self._events: list[dict[str, Any]] = []
        self._receive("QMP")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Runs a command.

        :param arguments: its own, with ``_`` for each ``-`` of a name.
        :returns: its result.
        :raises OSError: QEMU refuses it, is gone, or is silent.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        message = {"execute": command, "arguments": named} if named else {"execute": command}
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()
        return self._receive("return")

    def await_event(self, name: str, **data: Any) -> None:
        """Waits for an event that was not waited for before.

        :param data: what it must say.
        :raises OSError: QEMU is gone, or is silent.
        """
        while True:
            for event in self._events:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    self._events.remove(event)
                    return
            self._receive("event")

    def close(self) -> None:
        """Closes the connection."""
        self._stream.close()

    def _receive(self, kind: str) -> Any:
        for line in self._stream:
            answer = json.loads(line)
            if "error" in answer:
                raise OSError(f"QEMU refuses: {answer['error'].get('desc', answer)}")
            if "event" in answer:
                self._events.append(answer)
            if kind in answer:
                return answer[kind]
        raise ConnectionResetError("QEMU closed its control socket")
