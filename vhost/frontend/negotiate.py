# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a frontend and a backend agree on before the first ring is set up.

Knows the order of the messages and what a frontend of ours can drive; a backend without protocol features,
without acknowledgements or without a number of queues is as good as any.
"""

from dataclasses import dataclass, field
from typing import Final

from vhost.errors import LocalProtocolError
from vhost.protocol import (
    AddMemReg,
    GetFeatures,
    GetMaxMemSlots,
    GetProtocolFeatures,
    GetQueueNum,
    MemoryRegion,
    ProtocolFeature,
    Quirks,
    SetFeatures,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    VirtioFeature,
)
from vhost.virtqueue import RingLayout

from .exchange import Exchange
from .iommu import Iommu
from .link import Link
from .ram import GuestRam

__all__ = ("Options", "Negotiated", "negotiate", "share")

# Feature bits of device types: what a bit means there is between the device and whoever drives it.
_DEVICE_BITS: Final = (1 << 24) - 1 | 0x3FFF << 50
# Besides these, what options ask for: see _asked().
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
    | ProtocolFeature.LOG_SHMFD
)
# Regions that fit into a SET_MEM_TABLE.
_TABLE_REGIONS: Final = 8


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
    :ivar packed: insist on RING_PACKED.
    :ivar in_order: insist on IN_ORDER.
    :ivar big_endian: rings of a legacy driver on a big-endian machine: insist on CROSS_ENDIAN, no VERSION_1.
    :ivar kick: the backend is kicked; else it has to poll.
    :ivar call: the backend calls; else we poll.
    :ivar inflight: insist on INFLIGHT_SHMFD; None: use it if it is offered and `reconnect` is set.
    :ivar reconnect: seconds to try to get back to a backend that went away, 0: do not.
    :ivar iommu: insist on ACCESS_PLATFORM, with these translations.
    :ivar slots: share memory with ADD_MEM_REG, not with SET_MEM_TABLE.
    :ivar avoid: virtio features not to acknowledge though they are offered, if `features` is None.
    :ivar regions: how many regions guest memory has; more than 8 are always shared with ADD_MEM_REG.
    :ivar quirks: how far to go along with the backend.
    """

    features: int | None = None
    protocol_features: int | None = None
    queues: int = 1
    queue_size: int = 128
    ram_size: int = 64 << 20
    event_idx: bool = True
    indirect: bool = True
    slots: bool = False
    packed: bool = False
    in_order: bool = False
    big_endian: bool = False
    kick: bool = True
    call: bool = True
    inflight: bool | None = None
    reconnect: float = 0.0
    iommu: Iommu | None = None
    avoid: int = 0
    regions: int = 1
    quirks: Quirks = field(default_factory=Quirks)

    def __post_init__(self) -> None:
        if not 0 <= self.queues <= 256:
            raise ValueError(f"{self.queues} queues: a session can have 0 to 256")
        packed = self.packed or (self.features or 0) & VirtioFeature.RING_PACKED
        if packed and self.big_endian:
            raise ValueError("packed rings are little-endian; big_endian is for split ones of legacy drivers")
        RingLayout(self.queue_size, bool(packed))


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What a backend offers and what was acknowledged.

    :ivar num_queues: rings it has, None if it does not say.
    :ivar mem_slots: regions that ADD_MEM_REG may add, 0 without CONFIGURE_MEM_SLOTS.
    """

    offered_features: int
    features: int
    offered_protocol_features: int
    protocol_features: int
    num_queues: int | None
    mem_slots: int = 0


def negotiate(link: Link, options: Options) -> Exchange[Negotiated]:
    """Features, ownership and the number of queues.

    :raises LocalProtocolError: `options` ask for what the backend does not offer.
    """
    offered = yield from link.ask(GetFeatures())
    asked, asked_protocol = _asked(options)
    features = _choose("features", options.features, offered, _driven(options), asked)
    offered_protocol = protocol = 0
    if offered & VirtioFeature.PROTOCOL_FEATURES:
        offered_protocol = yield from link.ask(GetProtocolFeatures())
        protocol = _choose(
            "protocol features",
            options.protocol_features,
            offered_protocol,
            _driven_protocol(options),
            asked_protocol,
        )
        yield from link.exchange(SetProtocolFeatures(protocol))
    elif wanted := (options.protocol_features or 0) | asked_protocol:
        raise LocalProtocolError(
            f"protocol features {wanted:#x} wanted, but the backend has none: "
            f"it offers virtio features {offered:#x}, without bit 30"
        )
    yield from link.exchange(SetOwner())
    num_queues = None
    if protocol & ProtocolFeature.MQ:
        num_queues = yield from link.ask(GetQueueNum())
        if options.queues > num_queues:
            raise LocalProtocolError(
                f"{options.queues} queues wanted, but the backend has {num_queues}; ask for fewer, "
                f"or, if those are pairs, for the quirk queue-num-pairs"
            )
    mem_slots = 0
    if protocol & ProtocolFeature.CONFIGURE_MEM_SLOTS:
        mem_slots = yield from link.ask(GetMaxMemSlots())
    yield from link.exchange(SetFeatures(features))
    return Negotiated(offered, features, offered_protocol, protocol, num_queues, mem_slots)


def _driven(options: Options) -> int:
    driven = _DRIVEN & ~options.avoid
    if not options.event_idx:
        driven &= ~VirtioFeature.RING_EVENT_IDX
    if not options.indirect:
        driven &= ~VirtioFeature.RING_INDIRECT_DESC
    if options.big_endian:
        driven &= ~VirtioFeature.VERSION_1
    return driven


def _driven_protocol(options: Options) -> int:
    inflight = options.inflight is None and options.reconnect
    return _DRIVEN_PROTOCOL | (ProtocolFeature.INFLIGHT_SHMFD if inflight else 0)


def _asked(options: Options) -> tuple[int, int]:
    # Virtio and protocol features without which what the options ask for cannot be done.
    virtio = (
        VirtioFeature.RING_PACKED * options.packed
        | VirtioFeature.IN_ORDER * options.in_order
        | VirtioFeature.ACCESS_PLATFORM * (options.iommu is not None)
    )
    protocol = (
        ProtocolFeature.CROSS_ENDIAN * options.big_endian
        | ProtocolFeature.INFLIGHT_SHMFD * bool(options.inflight)
        # Without both nobody is asked for translations.
        | (ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK) * (options.iommu is not None)
    )
    return virtio, protocol


def _choose(what: str, wanted: int | None, offered: int, driven: int, asked: int) -> int:
    wanted = (offered & driven if wanted is None else wanted) | asked
    if missing := wanted & ~offered:
        raise LocalProtocolError(
            f"{what} {missing:#x} wanted, but the backend offers only {offered:#x}; leave these bits out"
        )
    return wanted


def share(link: Link, ram: GuestRam, agreed: Negotiated, *, slots: bool) -> Exchange[None]:
    """Give the backend our guest memory.

    :param slots: with ADD_MEM_REG, even if it fits into SET_MEM_TABLE.
    :raises LocalProtocolError: it has more regions than the backend takes.
    """
    regions = tuple(
        MemoryRegion(
            guest_addr=gpa, size=ram.region_size, user_addr=ram.user_address(gpa), mmap_offset=offset
        )
        for gpa, offset in ram.regions()
    )
    if slots or len(regions) > _TABLE_REGIONS:
        _check_slots(len(regions), agreed)
        for region in regions:
            yield from link.exchange(AddMemReg(region), (ram.fileno(),))
    else:
        yield from link.exchange(SetMemTable(regions), (ram.fileno(),) * len(regions))


def _check_slots(count: int, agreed: Negotiated) -> None:
    if not agreed.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
        raise LocalProtocolError(
            f"{count} regions of guest memory are to be shared by ADD_MEM_REG, but CONFIGURE_MEM_SLOTS is "
            f"not negotiated; leave slots= out, and have at most {_TABLE_REGIONS} regions, as many as "
            "SET_MEM_TABLE holds"
        )
    if count > agreed.mem_slots:
        raise LocalProtocolError(
            f"guest memory has {count} regions, but the backend has slots for {agreed.mem_slots} "
            f"(GET_MAX_MEM_SLOTS); have fewer, of which SET_MEM_TABLE shares {_TABLE_REGIONS} without slots"
        )
