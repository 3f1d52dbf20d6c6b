# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The back-end tests' front-end for a guest of Xen: its memory is domain 5's, described but not passed."""

import os
import socket
from collections.abc import Callable

from tests.backend.peer import FEATURES, PROTOCOL_FEATURES, RAM_SIZE, Peer
from vhost.protocol import AddMemReg, MemoryRegion, Message, ProtocolFeature, SetMemTable, SetOwner

FOREIGN, GRANT, NO_ADVANCE, NO_ADVANCE_OLD = 0x1, 0x2, 0x100, 0x8
ON_DEMAND = {
    "on demand": GRANT | NO_ADVANCE,
    "on demand, as vm-memory says it": GRANT | NO_ADVANCE_OLD,
}
KINDS = {"foreign": FOREIGN, "in advance": GRANT, **ON_DEMAND}

FIRST_FRAME = 0x40000  # where foreign memory begins
BIT = 1 << 63


class Domain(Peer):
    """Rings, tables and buffers lie in one region of the kind that `flags` say, the ring at reference 0.

    A region that is mapped on demand goes on behind the memory there is, where nothing has been granted.
    """

    def __init__(self, sock: socket.socket, guest: int, flags: int) -> None:
        self.guest, self.flags = guest, flags
        # Addresses of a front-end for Xen are guest addresses.
        self.gpa = self.user = FIRST_FRAME << 12 if flags & FOREIGN else BIT
        super().__init__(sock)

    def memory(self) -> int:
        os.pwrite(self.guest, bytes(RAM_SIZE), 0)  # whoever used it before left a ring there
        return os.dup(self.guest)

    def negotiate(
        self, features: int = FEATURES, protocol: int = PROTOCOL_FEATURES | ProtocolFeature.XEN_MMAP
    ) -> None:
        super().negotiate(features, protocol)

    def table(self, **changes: int) -> SetMemTable:
        """Our memory, with changes to what the region says."""
        size = RAM_SIZE if self.flags in (FOREIGN, GRANT) else 2 * RAM_SIZE
        region = MemoryRegion(self.gpa, size, self.user, 0, self.flags, domid=5)
        return SetMemTable((region._replace(**changes),))

    def passing(self, do: Callable[[Message, list[int]], None], message: SetMemTable | AddMemReg) -> None:
        """Do something with a message that takes a descriptor: one that there is no memory behind."""
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        do(message, [fd])
        os.close(fd)

    def share(self) -> None:
        self.do(SetOwner())
        self.passing(self.do, self.table())
