# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The back-end: serves a device to front-ends over a Unix socket, with threads or in an event loop.

``serve_async`` is loaded when it is first used, so that a daemon with threads starts without asyncio.
"""

from typing import TYPE_CHECKING

from vhost.backend.server import serve
from vhost.backend.stop import Stop

if TYPE_CHECKING:
    from vhost.backend.aio import serve_async

__all__ = ("serve", "serve_async", "Stop")


def __getattr__(name: str) -> object:
    if name == "serve_async":
        from vhost.backend.aio import serve_async

        return serve_async
    raise AttributeError(f"module 'vhost.backend' has no attribute {name!r}")
