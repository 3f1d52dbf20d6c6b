# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The back-end: serves a device to front-ends over a Unix socket, with threads or in an event loop."""

from vhost.backend.aio import serve_async
from vhost.backend.server import serve
from vhost.backend.stop import Stop

__all__ = ("serve", "serve_async", "Stop")
