# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory: address math for all, and the one way of mapping that this installation has.

``Memory`` is the implementation: ``vhost.mem.unix.UnixMemory``, or ``vhost.mem.xen.XenMemory`` when the
distribution ``vhost-xen`` is installed. The other module cannot be imported. See docs/architecture.md.
"""

from importlib import import_module
from typing import Final

from vhost.mem._select import SELECTED, TARGET
from vhost.mem.dirtylog import DirtyLog
from vhost.mem.inflight import InflightRegion, InflightSpec
from vhost.mem.iotlb import Iotlb
from vhost.mem.memory import GuestMemory
from vhost.mem.regions import Region, RegionSpec
from vhost.mem.scopes import Access, Deferred, RingAccess, Spans
from vhost.mem.table import Table

__all__ = (
    "SELECTED",
    "Memory",
    "GuestMemory",
    "RegionSpec",
    "Region",
    "Table",
    "Access",
    "Spans",
    "RingAccess",
    "Deferred",
    "DirtyLog",
    "InflightRegion",
    "InflightSpec",
    "Iotlb",
)


def _load() -> type[GuestMemory]:
    module, _, name = TARGET.partition(":")
    found = getattr(import_module(module), name)
    if not (isinstance(found, type) and issubclass(found, GuestMemory)):
        raise ImportError(
            f"{TARGET}, registered in the entry-point group vhost.mem, is not a GuestMemory class"
        )
    return found


#: The guest memory of this installation.
Memory: Final[type[GuestMemory]] = _load()
