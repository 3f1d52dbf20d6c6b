# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Tells a service manager how this process is doing: the ``NOTIFY_SOCKET`` half of systemd's protocol."""

import logging
import os
import socket

__all__ = ("notify",)

_log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send `state`, such as ``READY=1``, to the service manager, if there is one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path[0] == "@" else path  # systemd writes abstract names with an @
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), socket.MSG_NOSIGNAL, address)
    except OSError as error:
        _log.warning("cannot tell the service manager %s: %s", state, error)
