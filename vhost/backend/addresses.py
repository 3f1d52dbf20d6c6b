# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where the three parts of a vring are, as the front-end said it, and how they are found in guest memory."""

from contextlib import ExitStack
from dataclasses import dataclass

from vhost.errors import GuestMemoryError, RemoteProtocolError, UnmappedError
from vhost.mem import GuestMemory, RingAccess
from vhost.virtqueue import RingLayout

__all__ = ("RingAddresses",)


@dataclass(frozen=True, slots=True)
class RingAddresses:
    """Addresses of the descriptor table, the avail ring and the used ring in the front-end's address space.

    :raises RemoteProtocolError: one is not aligned as virtio wants it.
    """

    descriptor: int
    avail: int
    used: int

    def __post_init__(self) -> None:
        for part, address, align in (
            ("descriptor table", self.descriptor, RingLayout.DESCRIPTOR_ALIGN),
            ("avail ring", self.avail, RingLayout.AVAIL_ALIGN),
            ("used ring", self.used, RingLayout.USED_ALIGN),
        ):
            if address % align:
                raise RemoteProtocolError(f"{part} at {address:#x}, which is no multiple of {align}")

    def find(self, memory: GuestMemory, layout: RingLayout) -> list[tuple[int, int]]:
        """Guest-physical address and length of each part.

        :raises UnmappedError: one part is not wholly in one region of guest memory.
        """
        places = []
        for part, address, size in (
            ("descriptor table", self.descriptor, layout.descriptor),
            ("avail ring", self.avail, layout.avail),
            ("used ring", self.used, layout.used),
        ):
            try:
                places.append((memory.user_to_guest(address, size), size))
            except GuestMemoryError as error:
                raise UnmappedError(f"{part} of {size} bytes at {address:#x}: {error}") from None
        return places

    def map(self, memory: GuestMemory, layout: RingLayout) -> tuple[RingAccess, RingAccess, RingAccess]:
        """The three parts, mapped until they are closed.

        :raises UnmappedError: as in :meth:`find`.
        :raises GuestMemoryError: one part cannot be written.
        """
        with ExitStack() as undo:
            places = self.find(memory, layout)
            descriptor, avail = [undo.enter_context(memory.ring(gpa, size)) for gpa, size in places[:2]]
            # The low byte of the used ring's flags: a driver that was told not to kick kicks again.
            used = undo.enter_context(memory.ring(*places[2], clear=0))
            undo.pop_all()
        return descriptor, avail, used
