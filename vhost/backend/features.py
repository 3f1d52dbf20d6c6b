# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Features by name: what is served here, and how a user changes what is offered of it.

Names are those of the specification in lower case with hyphens, shorter ones for rings; those of protocol
features have ``protocol.`` in front. A set of both kinds is one number here, with these from bit 64 on.
"""

import enum
from typing import Final, NamedTuple

from vhost.protocol.features import ProtocolFeature, VirtioFeature

__all__ = ("PROTOCOL", "PROTOCOL_SHIFT", "RINGS", "Choice", "Own", "choose", "everything", "names")

#: The feature bits of a device type.
Own = type[enum.IntFlag] | None

#: Virtio features that all devices have here, because the rings or the session bring them.
RINGS: Final = int(
    VirtioFeature.VERSION_1
    | VirtioFeature.RING_INDIRECT_DESC
    | VirtioFeature.RING_EVENT_IDX
    | VirtioFeature.RING_PACKED
    | VirtioFeature.IN_ORDER
    | VirtioFeature.ACCESS_PLATFORM
    | VirtioFeature.LOG_ALL
    | VirtioFeature.PROTOCOL_FEATURES
)
#: Protocol features that the session has handlers for: CONFIG where the device has a configuration space.
PROTOCOL: Final = int(
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CROSS_ENDIAN
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.CONFIG
)
#: The bit at which protocol features begin.
PROTOCOL_SHIFT: Final = 64

_SHORT: Final = {
    VirtioFeature.RING_INDIRECT_DESC: "indirect",
    VirtioFeature.RING_EVENT_IDX: "event-idx",
    VirtioFeature.RING_PACKED: "packed",
    VirtioFeature.ACCESS_PLATFORM: "iommu",
    VirtioFeature.LOG_ALL: "log",
}


class Choice(NamedTuple):
    """What a user wants offered, and what not, whatever the default."""

    on: int = 0
    off: int = 0


def names(own: Own, among: int = -1) -> dict[str, int]:
    """The features that have a name, in the order of their bits.

    :param own: bits of the device type; :param among: only these.
    """
    named = [
        *((_SHORT.get(bit) or _spell(bit), int(bit)) for bit in VirtioFeature),
        *((_spell(bit), int(bit)) for bit in own or ()),
    ]
    named.sort(key=lambda pair: pair[1])
    named += ((f"protocol.{_spell(bit)}", int(bit) << PROTOCOL_SHIFT) for bit in ProtocolFeature)
    return {name: bit for name, bit in named if bit & among}


def everything(own: Own) -> list[str]:
    """The names of all that some device with these bits can be asked to offer."""
    return list(names(own, RINGS | PROTOCOL << PROTOCOL_SHIFT | sum(map(int, own or ()))))


def choose(text: str, own: Own) -> Choice:
    """The choice that a user wrote down: ``+iommu,-packed``. Of two that contradict, the later one counts.

    :raises ValueError: there is no such feature; the message lists those there are.
    """
    known = {_spell(bit): int(bit) for bit in _SHORT} | names(own)
    on = off = 0
    for item in filter(None, map(str.strip, text.split(","))):
        sign, name = item[0], item[1:]
        if sign not in "+-":
            raise ValueError(f"{item!r}: write +{item} to offer a feature, -{item} not to")
        if name not in known:
            raise ValueError(f"there is no feature {name!r}; there are {', '.join(everything(own))}")
        bit = known[name]
        on, off = (on | bit, off & ~bit) if sign == "+" else (on & ~bit, off | bit)
    return Choice(on, off)


def _spell(bit: enum.IntFlag) -> str:
    return (bit.name or "").lower().replace("_", "-")
