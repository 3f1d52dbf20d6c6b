# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What has been negotiated on a socket, and the gates that this opens to messages."""

from dataclasses import dataclass, field
from typing import Self

from .features import REQUIRES, GpuProtocolFeature, ProtocolFeature, VirtioFeature
from .quirks import Quirks

__all__ = ("Terms", "Gate")


@dataclass(slots=True)
class Terms:
    """What one socket has agreed on so far; layouts and gates depend on it."""

    features: int = 0
    protocol_features: int = 0  # on the GPU socket: GpuProtocolFeature
    offered_features: int = 0
    offered_protocol_features: int = 0
    postcopy: bool = False  # from POSTCOPY_LISTEN to POSTCOPY_END
    max_regions: int = 8  # in one SET_MEM_TABLE
    quirks: Quirks = field(default_factory=Quirks)

    @property
    def xen(self) -> bool:
        """Whether memory regions carry the two Xen fields."""
        return bool(self.protocol_features & ProtocolFeature.XEN_MMAP)


_NO_PROTOCOL = ProtocolFeature(0)
_NO_VIRTIO = VirtioFeature(0)


@dataclass(frozen=True, slots=True)
class Gate:
    """What has to be negotiated before a message may be sent.

    :param protocol: protocol features that must all be negotiated.
    :param virtio: virtio features that must all be negotiated.
    :param offered: virtio features the back-end must have offered.
    :param without: protocol features of which none may be negotiated.
    """

    protocol: ProtocolFeature | GpuProtocolFeature = _NO_PROTOCOL
    virtio: VirtioFeature = _NO_VIRTIO
    offered: VirtioFeature = _NO_VIRTIO
    without: ProtocolFeature = _NO_PROTOCOL

    @classmethod
    def of(cls, feature: ProtocolFeature | GpuProtocolFeature) -> Self:
        """The gate of one feature and of those it requires."""
        if isinstance(feature, ProtocolFeature):
            for one, needs in REQUIRES.items():
                feature |= needs if one in feature else ProtocolFeature(0)
        return cls(protocol=feature)

    def closed(self, terms: Terms) -> str:
        """Why the message may not be sent under *terms*; empty if it may."""
        if self.protocol & ~terms.protocol_features:
            return f"{type(self.protocol)(self.protocol & ~terms.protocol_features)!r} is not negotiated"
        if self.virtio & ~terms.features:
            return f"{VirtioFeature(self.virtio & ~terms.features)!r} is not negotiated"
        if self.offered & ~terms.offered_features:
            return f"{VirtioFeature(self.offered & ~terms.offered_features)!r} is not offered"
        if self.without & terms.protocol_features:
            return f"{self.without!r} is negotiated, which excludes it"
        return ""
