# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Drives vhost-user backends: sessions, guest memory, driver-side queues, and clients for some devices."""

from .aio import AsyncFrontend, AsyncQueue, connect_async
from .blk import Blk
from .frontend import Frontend, connect
from .iommu import Iommu, LinearIommu, Translation
from .listen import listen, listen_async
from .queue import FrontendQueue
from .ram import Buffer, GuestRam
from .ring import Completion
from .rng import Rng

__all__ = (
    "connect",
    "connect_async",
    "listen",
    "listen_async",
    "Frontend",
    "AsyncFrontend",
    "FrontendQueue",
    "AsyncQueue",
    "Completion",
    "GuestRam",
    "Buffer",
    "Iommu",
    "LinearIommu",
    "Translation",
    "Blk",
    "Rng",
)
