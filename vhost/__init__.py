# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""vhost-user devices and drivers in Python.

The names below are loaded when they are first used, so that ``import vhost`` costs nothing and a program that
only drives devices loads no backend.
"""

import importlib
from typing import TYPE_CHECKING

from . import errors
from .version import __version__

if TYPE_CHECKING:
    from .backend import Polling, serve, serve_async
    from .devices.device import Device
    from .frontend import connect, connect_async, listen, listen_async
    from .virtqueue import Chain, Queue

__all__ = (
    "Device",
    "Queue",
    "Chain",
    "serve",
    "serve_async",
    "Polling",
    "connect",
    "connect_async",
    "listen",
    "listen_async",
    "errors",
    "__version__",
)

_WHERE = {
    "Device": "vhost.devices.device",
    "Queue": "vhost.virtqueue",
    "Chain": "vhost.virtqueue",
    "serve": "vhost.backend",
    "serve_async": "vhost.backend",
    "Polling": "vhost.backend",
    "connect": "vhost.frontend",
    "connect_async": "vhost.frontend",
    "listen": "vhost.frontend",
    "listen_async": "vhost.frontend",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'vhost' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
