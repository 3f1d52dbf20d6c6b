# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A server in a thread of the test process, blocking or with an event loop."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import vhost
from tests.backend.peer import TIMEOUT, Lines, Peer, footprint
from vhost.backend import Stop
from vhost.mem import GuestMemory, Memory

P = TypeVar("P", bound=Peer)


class Serving:
    """Serves `device` on a path; the process has to be as before at the end.

    :param connect: connect to the path instead of listening there.
    """

    def __init__(
        self,
        device: vhost.Device,
        mode: str,
        path: Path,
        memory: Callable[[], GuestMemory] = Memory,
        *,
        connect: bool = False,
        **options: Any,
    ) -> None:
        self.device, self.mode, self.path = device, mode, path
        self.lines = Lines()
        self.stop = Stop()
        self._options = {
            "stop": self.stop,
            "memory": memory,
            "connect" if connect else "path": path,
            **options,
        }
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="server")

    def _run(self) -> None:
        try:
            if self.mode == "threads":
                vhost.serve(self.device, **self._options)
            else:
                asyncio.run(vhost.serve_async(self.device, **self._options))
        except BaseException as error:
            self._failure = error

    def connect(self, kind: Callable[[socket.socket], P] = Peer) -> P:
        """A new front-end; only one is served at a time."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.path))
        return kind(sock)

    def ended(self) -> None:
        """Wait until the server ends by itself."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def settled(self, connections: int) -> object:
        """What the process holds once `connections` in all have ended."""
        self.lines.wait("connection (ended|dropped|lost)", count=connections)
        return footprint()

    def __enter__(self) -> "Serving":
        logger = logging.getLogger("vhost.backend")
        logger.addHandler(self.lines)
        logger.setLevel(logging.DEBUG)
        self._thread.start()
        self.lines.wait("listening on|connecting to")
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "the server does not end"
        self.stop.close()
        logging.getLogger("vhost.backend").removeHandler(self.lines)
        if self._failure is not None:
            raise self._failure
