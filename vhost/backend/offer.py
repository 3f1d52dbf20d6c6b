# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a back-end offers for a device: virtio features and protocol features."""

from functools import lru_cache
from typing import NamedTuple, Self

from vhost.backend.features import PROTOCOL, PROTOCOL_SHIFT, RINGS, choose, names
from vhost.devices.device import Device
from vhost.errors import DeviceError, ProtocolError
from vhost.io.stream import Standing
from vhost.mem import Memory
from vhost.protocol import U64, Channel, Connection, Message, ProtocolFeature, Side, VirtioFeature
from vhost.protocol import frontend_messages as fe

__all__ = (
    "Offer",
    "check_device",
    "check_xen",
    "offered_only",
    "offered_protocol_features",
    "standing_answers",
)

# The index of a ring in a message that carries a descriptor has 8 bits.
_MAX_QUEUES = 256
_MAX_QUEUE_SIZE = 32768

# Plain integers: operations on flags take longer than all the rest of a request.
_PLATFORM = int(VirtioFeature.ACCESS_PLATFORM)
_IN_ORDER = int(VirtioFeature.IN_ORDER)
_INDIRECT = int(VirtioFeature.RING_INDIRECT_DESC)
_PROTOCOL_FEATURES = int(VirtioFeature.PROTOCOL_FEATURES)
_XEN_MMAP = int(ProtocolFeature.XEN_MMAP)
_CONFIG = int(ProtocolFeature.CONFIG)


class Offer(NamedTuple):
    """What a front-end is offered: virtio features, and protocol features."""

    virtio: int
    protocol: int

    @classmethod
    def of(cls, device: Device, features: str = "") -> Self:
        """The default for `device`, and what `features` change of it: ``+iommu,-packed``.

        The default is one that a front-end may hand to its driver as it is.

        :raises ValueError: `features` name what is none; the message lists those there are.
        :raises DeviceError: the device, or this build of vhost, cannot do what they ask for.
        """
        choice = choose(features, device.feature_type)
        served = device.features | RINGS | _protocol(device) << PROTOCOL_SHIFT
        if lacking := choice.on & ~served:
            raise DeviceError(
                f"{device.name} cannot offer {_listed(device, lacking)} here; "
                f"it can offer {_listed(device, served)}"
            )
        needed = (_XEN_MMAP << PROTOCOL_SHIFT | _PROTOCOL_FEATURES) * Memory.uses_xen
        if lacking := choice.off & needed:
            raise DeviceError(
                f"{device.name}: the Xen build of vhost cannot do without {_listed(device, lacking)}"
            )
        offer = (served & ~_off(device, choice.on) | choice.on) & ~choice.off
        virtio = offer & (1 << PROTOCOL_SHIFT) - 1
        return cls(virtio, offer >> PROTOCOL_SHIFT if virtio & _PROTOCOL_FEATURES else 0)


def _off(device: Device, on: int) -> int:
    # What is served and not offered by default. Many a front-end has no IOMMU, and its driver takes the bit.
    # With one, an indirect table is a page more to be translated for each request.
    translated = not Memory.uses_xen and bool(on & _PLATFORM)
    return _PLATFORM * (not Memory.uses_xen) | _IN_ORDER * (not device.in_order) | _INDIRECT * translated


def _protocol(device: Device) -> int:
    return PROTOCOL & ~(_CONFIG * (not device.offers_config)) | _XEN_MMAP * Memory.uses_xen


def _listed(device: Device, features: int) -> str:
    return ", ".join(names(device.feature_type, features)) or f"{features:#x}"


def offered_only(features: int, offer: int) -> int:
    """The features a front-end has chosen.

    :raises ProtocolError: among them are some it was not offered.
    """
    if extra := features & ~offer:
        raise ProtocolError(f"the bits {extra:#x} were not offered; the offer is {offer:#x}")
    return features


def offered_protocol_features(features: int, offer: int) -> int:
    """The protocol features a front-end has chosen.

    :raises ProtocolError: among them are some it was not offered, or XEN_MMAP is needed and not among them.
    """
    if features & ~offer & _XEN_MMAP:
        raise ProtocolError(
            f"XEN_MMAP ({_XEN_MMAP:#x}): this is the default build of vhost, which maps "
            f"memory that comes as files and no memory of Xen guests; for these: pip install 'vhost[xen]'"
        )
    offered_only(features, offer)
    check_xen(features, "protocol features")
    return features


@lru_cache(maxsize=64)
def standing_answers(features: int, protocol: int, agreed: int, queues: int, slots: int) -> Standing:
    """The answers that do not change while these numbers do not.

    :param features: virtio features on offer; :param protocol: protocol features on offer.
    :param agreed: protocol features in use; :param queues: the answer to GET_QUEUE_NUM.
    :param slots: of its memory.
    """
    answers: list[tuple[Message, int]] = [
        (fe.GetFeatures(), features),
        (fe.GetProtocolFeatures(), protocol),
    ]
    if protocol & ProtocolFeature.MQ:
        answers.append((fe.GetQueueNum(), queues))
    if agreed & ProtocolFeature.CONFIGURE_MEM_SLOTS:
        answers.append((fe.GetMaxMemSlots(), slots))
    connection = Connection(Channel.FRONTEND, Side.RESPONDER)
    return Standing([connection.standing(message, U64(value)) for message, value in answers])


def check_xen(features: int, what: str) -> None:
    """Refuse what the Xen build cannot do without XEN_MMAP; the other build does not offer it.

    :param features: protocol features; :param what: what needs XEN_MMAP among them.
    :raises ProtocolError: it is not, with the ways out.
    """
    if Memory.uses_xen and not features & _XEN_MMAP:
        raise ProtocolError(
            f"{what} without XEN_MMAP ({_XEN_MMAP:#x}): this is the Xen build of vhost, which "
            f"maps memory of Xen guests only; use a front-end that negotiates XEN_MMAP, or pip uninstall "
            f"vhost-xen for guests whose memory comes as files"
        )


def check_device(device: Device) -> None:
    """Refuse a device whose attributes are out of range, before a front-end finds out.

    :raises DeviceError: which, and why.
    """
    queues, size = device.num_queues, device.max_queue_size
    if not 1 <= queues <= _MAX_QUEUES:
        raise DeviceError(f"{device.name}: num_queues is {queues}; vhost-user has 1 to {_MAX_QUEUES}")
    if not 0 < size <= _MAX_QUEUE_SIZE or size & (size - 1):
        raise DeviceError(
            f"{device.name}: max_queue_size is {size}; a power of two up to {_MAX_QUEUE_SIZE} is needed"
        )
    if not 0 <= device.features < 1 << 64:
        raise DeviceError(f"{device.name}: features are {device.features:#x}; there are 64 bits")
