# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a front-end sets of a vring before it starts it."""

from dataclasses import dataclass

from vhost.backend.addresses import RingAddresses
from vhost.errors import RemoteProtocolError
from vhost.protocol import PackedBase, Quirks
from vhost.virtqueue import RingLayout

__all__ = ("RingSettings", "check_size", "is_size", "normal_base")


def is_size(size: int, *, packed: bool) -> bool:
    """Whether a ring can have so many entries: any number, or, a split ring, a power of two."""
    return size > 0 and (packed or not size & (size - 1))


def check_size(size: int, most: int, *, packed: bool) -> None:
    """Refuse what no ring of a device can have that takes up to `most` entries.

    :raises RemoteProtocolError: it is too much, or, for a split ring, no power of two.
    """
    if size > most or not is_size(size, packed=packed):
        kind = "1" if packed else "a power of two from 1"
        raise RemoteProtocolError(f"{size} entries; {kind} to {most} is needed")


def normal_base(base: int, quirks: Quirks, *, packed: bool) -> int:
    """Where a ring is to go on, with both positions where it is a packed one.

    :raises RemoteProtocolError: more than 16 bits, which only packed rings use.
    """
    if packed:
        return PackedBase.of(base, quirks).base()
    if base > 0xFFFF:
        raise RemoteProtocolError(f"base {base:#x}; the index of a split ring has 16 bits")
    return base


@dataclass(frozen=True, slots=True)
class RingSettings:
    """How large a ring is, where it is, and in which byte order; each may be set at any time.

    :ivar size: entries, 0: not said yet.
    :ivar big_endian: a legacy driver's byte order.
    """

    size: int = 0
    addresses: RingAddresses | None = None
    big_endian: bool = False

    def layout(self, *, packed: bool) -> tuple[RingLayout, RingAddresses]:
        """What a ring with these settings takes, and where.

        :raises RemoteProtocolError: something was not said, or is not for this kind of ring.
        """
        if not self.size or self.addresses is None:
            missing = "SET_VRING_ADDR" if self.size else "SET_VRING_NUM"
            raise RemoteProtocolError(f"the ring cannot start without {missing}")
        check_size(self.size, self.size, packed=packed)
        layout = RingLayout(self.size, packed)
        self.addresses.check(layout)
        return layout, self.addresses
