# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a ring needs around it: what runs it, and what the rings of a connection share."""

from typing import Protocol

from vhost.backend.translations import Translations
from vhost.mem import DirtyLog, InflightRegion, Iotlb
from vhost.protocol import Quirks

__all__ = ("Host", "Runner")


class Runner(Protocol):
    """Calls :meth:`.Ring.attend` or :meth:`.Ring.service` of one ring when it should, and :meth:`.Ring.heard`
    when one that waits is kicked; made running."""

    def stop(self) -> None:
        """Return when the ring is not touched any more."""

    def nudge(self) -> None:
        """Have a look at the ring again, from any thread."""


class Host(Protocol):
    """What a ring needs of its connection besides guest memory."""

    features: int
    quirks: Quirks
    log: DirtyLog | None
    inflight: InflightRegion | None
    translations: Translations
    #: The rings that are enabled. While there is none, nothing of any ring is touched.
    enabled: set[int]

    @property
    def iotlb(self) -> Iotlb | None: ...
