# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What has been negotiated on a socket, and the gates that this opens to messages."""

from dataclasses import dataclass, field
from typing import Self

from .features import REQUIRES, GpuProtocolFeature, ProtocolFeature, VirtioFeature
from .quirks import Quirks

__all__ = ("Terms", "Gate")

_XEN_MMAP = int(ProtocolFeature.XEN_MMAP)


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

    def copy(self) -> "Terms":
        """The same once more, to go back to."""
        return Terms(
            self.features,
            self.protocol_features,
            self.offered_features,
            self.offered_protocol_features,
            self.postcopy,
            self.max_regions,
            self.quirks,
        )

    @property
    def xen(self) -> bool:
        """Whether memory regions carry the two Xen fields."""
        return bool(self.protocol_features & _XEN_MMAP)


@dataclass(frozen=True, slots=True)
class Gate:
    """What has to be negotiated before a message may be sent; plain integers, for speed.

    :param protocol: protocol features that must all be negotiated.
    :param virtio: virtio features that must all be negotiated, or, before SET_FEATURES, offered: QEMU enables
        the rings of a network device before it says what it has acknowledged.
    :param offered: virtio features the back-end must have offered.
    :param offered_protocol: protocol features that it must have offered, whether or not they are negotiated.
    :param without: protocol features of which none may be negotiated.
    :param kind: what names the bits of *protocol*.
    """

    protocol: int = 0
    virtio: int = 0
    offered: int = 0
    offered_protocol: int = 0
    without: int = 0
    kind: type[ProtocolFeature] | type[GpuProtocolFeature] = ProtocolFeature

    @classmethod
    def of(cls, feature: ProtocolFeature | GpuProtocolFeature) -> Self:
        """The gate of a feature, or several, and of those they require."""
        if isinstance(feature, ProtocolFeature):
            for one, needs in REQUIRES.items():
                feature |= needs if one in feature else ProtocolFeature(0)
        return cls(protocol=int(feature), kind=type(feature))

    def closed(self, terms: Terms) -> str:
        """Why the message may not be sent under *terms*; empty if it may."""
        if missing := self.protocol & ~terms.protocol_features:
            return f"{self.kind(missing)!r} is not negotiated"
        if missing := self.virtio & ~(terms.features or terms.offered_features):
            return f"{VirtioFeature(missing)!r} is not negotiated"
        if missing := self.offered & ~terms.offered_features:
            return f"{VirtioFeature(missing)!r} is not offered"
        if missing := self.offered_protocol & ~(terms.offered_protocol_features | terms.protocol_features):
            return f"{ProtocolFeature(missing)!r} is not offered"
        if excess := self.without & terms.protocol_features:
            return f"{ProtocolFeature(excess)!r} is negotiated, which excludes it"
        return ""
