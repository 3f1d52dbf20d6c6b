# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the rings of a connection share besides memory: features, translations, dirty log, inflight region."""

from collections.abc import Collection

from vhost.backend.notifier import Notifier
from vhost.backend.translations import Translations
from vhost.mem import DirtyLog, GuestMemory, InflightRegion, InflightSpec, Iotlb
from vhost.protocol import ProtocolFeature, Quirks, VirtioFeature

__all__ = ("Shared",)

_PACKED = int(VirtioFeature.RING_PACKED)
_PLATFORM = int(VirtioFeature.ACCESS_PLATFORM)
# Without these there is nobody to ask for a translation.
_CHANNEL = int(ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK)


class Shared:
    """Closed with the session.

    :param quirks: how far to go along with the front-end.
    """

    def __init__(self, memory: GuestMemory, quirks: Quirks) -> None:
        self.quirks = quirks
        #: Virtio features that are acknowledged.
        self.features = 0
        #: Where addresses are I/O addresses.
        self.translations = Translations(memory, quirks)
        self.log: DirtyLog | None = None
        self.inflight: InflightRegion | None = None
        #: Numbers of the rings that are enabled.
        self.enabled: set[int] = set()
        self._memory = memory
        self._old: list[InflightRegion] = []
        self._notify = Notifier("log descriptor")

    @property
    def iotlb(self) -> Iotlb | None:
        """What is known of translations; None: addresses are guest-physical."""
        return self.translations.iotlb

    @property
    def packed(self) -> bool:
        """Whether rings are packed ones."""
        return bool(self.features & _PACKED)

    def translates(self, features: int, protocol_features: int) -> bool:
        """Whether the front-end translates addresses, if these are negotiated."""
        if self._memory.uses_xen:  # whose grants are addresses of their own
            return False
        return bool(features & _PLATFORM) and not _CHANNEL & ~protocol_features

    def set_features(self, features: int, protocol_features: int) -> None:
        """What is negotiated now: SET_FEATURES or SET_PROTOCOL_FEATURES, while all rings are paused."""
        self.features = features
        self.translations.features, self.translations.protocol_features = features, protocol_features
        self.translations.switch(self.translates(features, protocol_features))

    # ---- the dirty log ----

    def set_log(self, fd: int, size: int, offset: int) -> None:
        """SET_LOG_BASE, while all rings are paused.

        :raises GuestMemoryError: the descriptor has no such log.
        """
        log = DirtyLog(fd, size, offset)
        self.close_log()
        self.log = log
        log.cdata.fd = self._notify.fd

    def set_log_fd(self, fd: int) -> None:
        """SET_LOG_FD, while all rings are paused.

        :raises RemoteProtocolError: it is a file or a device; the one before stays.
        """
        self._notify.set(fd)
        if self.log is not None:
            self.log.cdata.fd = fd

    def close_log(self) -> None:
        """There is no log any more; no ring uses it."""
        if self.log is not None:
            self.log.close()
            self.log = None

    # ---- the inflight region ----

    def new_inflight(
        self, num_queues: int, queue_size: int, in_use: Collection[InflightRegion | None]
    ) -> tuple[InflightSpec, int]:
        """GET_INFLIGHT_FD: a new region, and the descriptor of its memory, which is the caller's.

        :param in_use: as for :meth:`set_inflight`.
        :raises GuestMemoryError: such rings cannot be.
        """
        region, fd = InflightRegion.create(num_queues, queue_size, packed=self.packed)
        self.set_inflight(region, in_use)
        return region.spec, fd

    def set_inflight(self, region: InflightRegion, in_use: Collection[InflightRegion | None]) -> None:
        """SET_INFLIGHT_FD: rings that start from now on record there what is in flight.

        :param in_use: regions of rings that run, which keep theirs until they stop.
        """
        before = self._old if self.inflight is None else [*self._old, self.inflight]
        self._old, self.inflight = [], region
        for old in before:
            if old in in_use:
                self._old.append(old)
            else:
                old.close()

    def close(self) -> None:
        """No ring is there any more."""
        self.translations.close()
        self.close_log()
        for region in (*self._old, self.inflight):
            if region is not None:
                region.close()
        self._old.clear()
        self.inflight = None
        self._notify.close()
