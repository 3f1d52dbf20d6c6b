# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where the three parts of a vring are, as the front-end said it, and how they are found in guest memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vhost.errors import GuestMemoryError, RemoteProtocolError, UnmappedError
from vhost.mem import GuestMemory, Iotlb, RingAccess
from vhost.virtqueue import Miss, RingLayout

__all__ = ("RingAddresses", "map_parts")


@dataclass(frozen=True, slots=True)
class RingAddresses:
    """Addresses of the descriptor table, the avail ring and the used ring in the front-end's address space.

    For a packed ring these are the descriptors and the event suppression of driver and device. With a
    translation they are I/O addresses.

    :ivar log: address under which writes to the used ring are logged, guest-physical or, with a translation,
        an I/O address too; None: they are not.
    """

    descriptor: int
    avail: int
    used: int
    log: int | None = None

    def parts(self, layout: RingLayout) -> tuple[tuple[str, int, int], ...]:
        """Name, address and length of each part."""
        return (
            ("descriptor table", self.descriptor, layout.descriptor),
            ("avail ring", self.avail, layout.avail),
            ("used ring", self.used, layout.used),
        )

    def everything(self, layout: RingLayout) -> list[tuple[int, int]]:
        """Address and length of each part, and of what is logged."""
        parts = [(address, size) for _, address, size in self.parts(layout)]
        return parts if self.log is None else [*parts, (self.log, layout.used)]

    def same_place(self, other: "RingAddresses") -> bool:
        """Whether only logging differs."""
        return (self.descriptor, self.avail, self.used) == (other.descriptor, other.avail, other.used)

    def check(self, layout: RingLayout) -> None:
        """Refuse what no driver may do.

        :raises RemoteProtocolError: one part is not aligned as virtio wants it.
        """
        for part, address, align in (
            ("descriptor table", self.descriptor, layout.DESCRIPTOR_ALIGN),
            ("avail ring", self.avail, layout.avail_align),
            ("used ring", self.used, layout.used_align),
        ):
            if address % align:
                raise RemoteProtocolError(f"{part} at {address:#x}, which is no multiple of {align}")

    def missing(self, iotlb: Iotlb, layout: RingLayout) -> list[Miss]:
        """What of the ring, and of the addresses that are logged, has no translation yet."""
        return [
            Miss(at, n, write=True)
            for address, size in self.everything(layout)
            for at, n in iotlb.lacking(address, size, write=True)
        ]

    def logged(self, layout: RingLayout, iotlb: Iotlb | None) -> int | None:
        """Guest-physical address under which writes to the used ring are logged, None: they are not.

        :raises GuestMemoryError: it is an I/O address without a translation.
        """
        if self.log is None or iotlb is None:
            return self.log
        return iotlb.guest_address(self.log, layout.used)

    def find(
        self, memory: GuestMemory, layout: RingLayout, iotlb: Iotlb | None = None
    ) -> list[tuple[int, int]]:
        """Guest-physical address and length of each part.

        :raises UnmappedError: one part is not wholly in one region of guest memory.
        """
        places = []
        for part, address, size in self.parts(layout):
            try:
                if iotlb is None:
                    places.append((memory.user_to_guest(address, size), size))
                else:
                    places.append((iotlb.guest_address(address, size), size))
            except GuestMemoryError as error:
                raise UnmappedError(f"{part} of {size} bytes at {address:#x}: {error}") from None
        return places


def map_parts(
    memory: GuestMemory, layout: RingLayout, places: Sequence[tuple[int, int]]
) -> tuple[RingAccess, RingAccess, RingAccess]:
    """The three parts of a ring, mapped until they are closed.

    :param places: from :meth:`RingAddresses.find`.
    :raises GuestMemoryError: one part cannot be written.
    """
    with ExitStack() as undo:
        descriptor, avail = [undo.enter_context(memory.ring(gpa, size)) for gpa, size in places[:2]]
        # The low byte of the used ring's flags: a driver that was told not to kick kicks again. Of a packed
        # ring's event suppression it is in the second half.
        used = undo.enter_context(memory.ring(*places[2], clear=2 if layout.packed else 0))
        undo.pop_all()
    return descriptor, avail, used
