# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The back-end: serves a device to front-ends over a Unix socket, with threads or in an event loop.

Both are loaded when they are first used: a daemon listens before it has all it needs to serve, and one with
threads starts without asyncio.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from vhost.backend.stop import Stop

if TYPE_CHECKING:
    from vhost.backend.aio import serve_async
    from vhost.backend.server import serve
    from vhost.backend.worker import Polling

__all__ = ("serve", "serve_async", "Polling", "Stop")

_WHERE = {
    "serve": "vhost.backend.server",
    "serve_async": "vhost.backend.aio",
    "Polling": "vhost.backend.worker",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'vhost.backend' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
