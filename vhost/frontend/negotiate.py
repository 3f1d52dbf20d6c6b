# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a frontend and a backend agree on before the first ring is set up.

Knows the order of the messages and what a frontend of ours can drive; a backend without protocol features,
without acknowledgements or without a number of queues is as good as any.
"""

from dataclasses import dataclass
from typing import Final

from vhost.errors import LocalProtocolError
from vhost.protocol import (
    AddMemReg,
    GetFeatures,
    GetProtocolFeatures,
    GetQueueNum,
    MemoryRegion,
    ProtocolFeature,
    SetFeatures,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    VirtioFeature,
)
from vhost.virtqueue import RingLayout

from .exchange import Exchange
from .link import Link
from .ram import GUEST_BASE, USER_BASE, GuestRam

__all__ = ("Options", "Negotiated", "negotiate", "share")

# Feature bits of device types: what a bit means there is between the device and whoever drives it.
_DEVICE_BITS: Final = (1 << 24) - 1 | 0x3FFF << 50
# Rings of ours are split rings; nothing else about them has to be known to drive these.
_DRIVEN: Final = (
    _DEVICE_BITS
    | VirtioFeature.ANY_LAYOUT
    | VirtioFeature.RING_INDIRECT_DESC
    | VirtioFeature.RING_EVENT_IDX
    | VirtioFeature.PROTOCOL_FEATURES
    | VirtioFeature.VERSION_1
)
_DRIVEN_PROTOCOL: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)


@dataclass(frozen=True, slots=True)
class Options:
    """What a frontend wants.

    :ivar features: virtio features to acknowledge, None: all offered ones that can be driven.
    :ivar protocol_features: likewise, protocol features.
    :ivar queues: number of queues to start.
    :ivar queue_size: entries of each ring.
    :ivar ram_size: bytes of guest memory.
    :ivar event_idx: acknowledge RING_EVENT_IDX if it is offered and `features` is None.
    :ivar indirect: likewise, RING_INDIRECT_DESC.
    :ivar slots: share memory with ADD_MEM_REG, not with SET_MEM_TABLE.
    """

    features: int | None = None
    protocol_features: int | None = None
    queues: int = 1
    queue_size: int = 128
    ram_size: int = 64 << 20
    event_idx: bool = True
    indirect: bool = True
    slots: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.queues <= 256:
            raise ValueError(f"{self.queues} queues: a session can have 0 to 256")
        RingLayout(self.queue_size)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What a backend offers and what was acknowledged; `num_queues` is None if it does not say."""

    offered_features: int
    features: int
    offered_protocol_features: int
    protocol_features: int
    num_queues: int | None


def negotiate(link: Link, options: Options) -> Exchange[Negotiated]:
    """Features, ownership and the number of queues.

    :raises LocalProtocolError: `options` ask for what the backend does not offer.
    """
    offered = yield from link.ask(GetFeatures())
    features = _choose("features", options.features, offered, _driven(options))
    offered_protocol = protocol = 0
    if offered & VirtioFeature.PROTOCOL_FEATURES:
        offered_protocol = yield from link.ask(GetProtocolFeatures())
        protocol = _choose("protocol features", options.protocol_features, offered_protocol, _DRIVEN_PROTOCOL)
        yield from link.exchange(SetProtocolFeatures(protocol))
    elif options.protocol_features:
        raise LocalProtocolError(
            f"protocol features {options.protocol_features:#x} wanted, but the backend has none: "
            f"it offers virtio features {offered:#x}, without bit 30"
        )
    yield from link.exchange(SetOwner())
    num_queues = None
    if protocol & ProtocolFeature.MQ:
        num_queues = yield from link.ask(GetQueueNum())
        if options.queues > num_queues:
            raise LocalProtocolError(f"{options.queues} queues wanted, but the backend has {num_queues}")
    yield from link.exchange(SetFeatures(features))
    return Negotiated(offered, features, offered_protocol, protocol, num_queues)


def _driven(options: Options) -> int:
    driven = int(_DRIVEN)
    if not options.event_idx:
        driven &= ~VirtioFeature.RING_EVENT_IDX
    if not options.indirect:
        driven &= ~VirtioFeature.RING_INDIRECT_DESC
    return driven


def _choose(what: str, wanted: int | None, offered: int, driven: int) -> int:
    if wanted is None:
        return offered & driven
    if missing := wanted & ~offered:
        raise LocalProtocolError(
            f"{what} {missing:#x} wanted, but the backend offers only {offered:#x}; leave these bits out"
        )
    return wanted


def share(link: Link, ram: GuestRam, *, slots: bool) -> Exchange[None]:
    """Give the backend our guest memory.

    :param slots: with ADD_MEM_REG.
    """
    region = MemoryRegion(guest_addr=GUEST_BASE, size=ram.size, user_addr=USER_BASE, mmap_offset=0)
    message = AddMemReg(region) if slots else SetMemTable((region,))
    yield from link.exchange(message, (ram.fileno(),))
