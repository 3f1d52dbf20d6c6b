# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Typed bindings to the Xen libraries; one module per library, loaded when a handle is opened.

Imports anywhere, Xen or not. Pages are Xen's: 4096 bytes.
"""

from pyxenctrl.control import Control
from pyxenctrl.devicemodel import DeviceModel
from pyxenctrl.domain import DomainInfo, DomainKind
from pyxenctrl.evtchn import EventChannels
from pyxenctrl.foreignmemory import ForeignMapping, ForeignMemory, ResourceKind, ResourceMapping
from pyxenctrl.gntshr import GrantShare, SharedPages
from pyxenctrl.gnttab import GrantMapping, GrantTable
from pyxenctrl.grantcopy import CopySegment
from pyxenctrl.guest import P2m, machine_frames
from pyxenctrl.handle import PAGE_SIZE, Protection
from pyxenctrl.ioreq import BufferedIoreqPage, IoreqPage, IoRequest
from pyxenctrl.ioreqserver import IoreqServer
from pyxenctrl.nodes import Access, Permission
from pyxenctrl.privcmd import Privcmd, is_privcmd
from pyxenctrl.store import Event, Store, Transaction

__all__ = (
    "PAGE_SIZE",
    "Protection",
    "GrantTable",
    "GrantMapping",
    "CopySegment",
    "GrantShare",
    "SharedPages",
    "ForeignMemory",
    "ForeignMapping",
    "ResourceKind",
    "ResourceMapping",
    "Privcmd",
    "is_privcmd",
    "EventChannels",
    "Store",
    "Transaction",
    "Event",
    "Access",
    "Permission",
    "DeviceModel",
    "IoreqServer",
    "IoreqPage",
    "BufferedIoreqPage",
    "IoRequest",
    "Control",
    "DomainKind",
    "DomainInfo",
    "P2m",
    "machine_frames",
)
