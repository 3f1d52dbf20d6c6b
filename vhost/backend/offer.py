# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a back-end offers for a device: virtio features and protocol features."""

from functools import lru_cache

from vhost.devices.device import Device
from vhost.errors import DeviceError, ProtocolError
from vhost.io.stream import Standing
from vhost.mem import Memory
from vhost.protocol import U64, Channel, Connection, Message, ProtocolFeature, Side, VirtioFeature
from vhost.protocol import frontend_messages as fe

__all__ = (
    "check_device",
    "check_xen",
    "offered_only",
    "offered_protocol_features",
    "protocol_features",
    "standing_answers",
    "virtio_features",
)

# The index of a ring in a message that carries a descriptor has 8 bits.
_MAX_QUEUES = 256
_MAX_QUEUE_SIZE = 32768

# Plain integers: operations on flags take longer than all the rest of a request.
_RINGS = int(
    VirtioFeature.VERSION_1
    | VirtioFeature.RING_INDIRECT_DESC
    | VirtioFeature.RING_EVENT_IDX
    | VirtioFeature.RING_PACKED
    | VirtioFeature.IN_ORDER
    | VirtioFeature.ACCESS_PLATFORM
    | VirtioFeature.LOG_ALL
    | VirtioFeature.PROTOCOL_FEATURES
)
_XEN_MMAP = int(ProtocolFeature.XEN_MMAP)
_CONFIG = int(ProtocolFeature.CONFIG)
_PROTOCOL = int(
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CROSS_ENDIAN
    | ProtocolFeature.INFLIGHT_SHMFD
)


def virtio_features(device: Device) -> int:
    """The device's own bits and those of the rings served here."""
    return int(device.features) | _RINGS


def protocol_features(device: Device) -> int:
    """The protocol features that the session has handlers for."""
    offer = _PROTOCOL
    if Memory.uses_xen:
        offer |= _XEN_MMAP
    if device.offers_config:
        offer |= _CONFIG
    return offer


def offered_only(features: int, offer: int) -> int:
    """The features a front-end has chosen.

    :raises ProtocolError: among them are some it was not offered.
    """
    if extra := features & ~offer:
        raise ProtocolError(f"the bits {extra:#x} were not offered; the offer is {offer:#x}")
    return features


def offered_protocol_features(features: int, device: Device) -> int:
    """The protocol features a front-end has chosen.

    :raises ProtocolError: among them are some it was not offered, or XEN_MMAP is needed and not among them.
    """
    offer = protocol_features(device)
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
    if agreed & ProtocolFeature.MQ:
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
