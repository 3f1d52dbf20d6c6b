# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Typed bindings to the Xen libraries; one module per library, loaded when a handle is opened.

Imports anywhere, Xen or not. Pages are Xen's: 4096 bytes.
"""

from pyxenctrl.foreignmemory import ForeignMapping, ForeignMemory, ResourceKind, ResourceMapping
from pyxenctrl.gnttab import GrantMapping, GrantTable
from pyxenctrl.grantcopy import CopySegment
from pyxenctrl.handle import PAGE_SIZE, Protection
from pyxenctrl.privcmd import Privcmd, is_privcmd

__all__ = (
    "PAGE_SIZE",
    "Protection",
    "GrantTable",
    "GrantMapping",
    "CopySegment",
    "ForeignMemory",
    "ForeignMapping",
    "ResourceKind",
    "ResourceMapping",
    "Privcmd",
    "is_privcmd",
)
