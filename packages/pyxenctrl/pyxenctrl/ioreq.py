# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Requests of an ioreq server: reading and answering them in the pages they come in (public/hvm/ioreq.h).

Knows no library. The pages are a resource of the domain, of the kind IOREQ_SERVER and with the number of the
server: frame SLOTS_FRAME has a slot for each vCPU, frame BUFFERED_FRAME is the ring of a buffered server. The
hypervisor tells of a request by an event on the slot's port, and waits for a notification there.
"""

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

__all__ = (
    "BUFFERED_FRAME",
    "SLOTS",
    "SLOTS_FRAME",
    "BufferedIoreqPage",
    "BufferedRequest",
    "IoKind",
    "IoRequest",
    "IoreqPage",
)

#: Frames of the resource.
BUFFERED_FRAME: Final = 0
SLOTS_FRAME: Final = 1

#: Slots in the page; vCPU n of the domain has slot n.
SLOTS: Final = 128

# struct ioreq
_SLOT: Final = struct.Struct("<QQIIIHBB")
_DATA, _PORT, _STATE = 8, 24, 30
_STATE_MASK, _POINTER, _READ, _DESCENDING = 0x0F, 1 << 4, 1 << 5, 1 << 6
_READY, _IN_PROCESS, _ANSWERED = 1, 2, 3

# struct buffered_iopage
_POINTERS: Final = struct.Struct("<II")
_POINTER_MASK: Final = 0xFFFFFFFF
_BUFFERED: Final = struct.Struct("<II")
_BUFFERED_SLOTS: Final = 511


class IoKind(enum.IntEnum):
    """What is accessed, or else asked for."""

    PORT = 0
    MMIO = 1
    PCI_CONFIG = 2
    #: The domain set its clock; the data are seconds.
    TIME_OFFSET = 7
    #: Mappings of the domain's memory must be given up.
    INVALIDATE = 8


@dataclass(frozen=True, slots=True)
class IoRequest:
    """One access of a vCPU, which waits for the answer."""

    kind: IoKind
    #: The first byte accessed; of PCI_CONFIG segment << 48, bus << 40, device << 35, function << 32, offset.
    address: int
    #: What is written; of a pointer, the guest-physical address of it or for it.
    data: int
    #: Bytes of one access.
    size: int
    #: How many accesses: more than one for repeated instructions, next to each other.
    count: int
    is_read: bool
    is_pointer: bool
    #: The accesses of a repeated instruction go downwards.
    is_descending: bool


@final
class IoreqPage:
    """The slots for vCPUs.

    :param page: the mapped page, writable.
    :raises ValueError: it is not one page.
    """

    def __init__(self, page: memoryview) -> None:
        self._page = page.cast("B")
        if len(self._page) != SLOTS * _SLOT.size:
            raise ValueError(f"a page of {SLOTS} slots has {SLOTS * _SLOT.size} bytes, not {len(self._page)}")

    def port(self, slot: int) -> int:
        """The domain's event channel port of a slot; there is one only while the server is enabled."""
        port: int
        (port,) = struct.unpack_from("<I", self._page, self._at(slot) + _PORT)
        return port

    def take(self, slot: int) -> IoRequest | None:
        """The request in a slot, which is to be answered then; None if there is none to be taken.

        :raises ValueError: it is of an unknown kind; it stays.
        """
        at = self._at(slot)
        address, data, count, size, _, _, bits, kind = _SLOT.unpack_from(self._page, at)
        if bits & _STATE_MASK != _READY:
            return None
        request = IoRequest(
            IoKind(kind),
            address,
            data,
            size,
            count,
            bool(bits & _READ),
            bool(bits & _POINTER),
            bool(bits & _DESCENDING),
        )
        self._page[at + _STATE] = bits & ~_STATE_MASK | _IN_PROCESS
        return request

    def answer(self, slot: int, data: int = 0) -> None:
        """Answer the request that was taken from a slot. Its port must be notified then.

        :param data: what was read, as many bytes of it as were asked for; of no matter for other requests.
        :raises ValueError: no request was taken from the slot.
        """
        at = self._at(slot)
        _, _, _, size, _, _, bits, _ = _SLOT.unpack_from(self._page, at)
        if bits & _STATE_MASK != _IN_PROCESS:
            raise ValueError(f"there is no request in slot {slot} to be answered")
        if bits & _READ and not bits & _POINTER:
            struct.pack_into("<Q", self._page, at + _DATA, data & (1 << 8 * min(size, 8)) - 1)
        # Last: from here on the slot is the hypervisor's.
        self._page[at + _STATE] = bits & ~_STATE_MASK | _ANSWERED

    @staticmethod
    def _at(slot: int) -> int:
        if not 0 <= slot < SLOTS:
            raise IndexError(f"slot {slot} of {SLOTS}")
        return slot * _SLOT.size


@dataclass(frozen=True, slots=True)
class BufferedRequest:
    """One write that is not answered."""

    kind: IoKind
    #: The lowest 20 bits of it only.
    address: int
    data: int
    size: int


@final
class BufferedIoreqPage:
    """The ring of requests that are not waited for.

    :param page: the mapped page, writable.
    """

    def __init__(self, page: memoryview) -> None:
        self._page = page.cast("B")

    def take(self) -> Iterator[BufferedRequest]:
        """The requests there are; each is taken out of the ring when it is asked for."""
        while True:
            read, write = _POINTERS.unpack_from(self._page)
            if read == write:
                return
            bits, data = self._slot(read)
            used, size = 1, 1 << (bits >> 10 & 3)
            if size == 8:
                used = 2
                data |= self._slot(read + 1 & _POINTER_MASK)[1] << 32
            struct.pack_into("<I", self._page, 0, read + used & _POINTER_MASK)
            yield BufferedRequest(IoKind(bits & 0xFF), bits >> 12, data, size)

    def _slot(self, number: int) -> tuple[int, int]:
        at = _POINTERS.size + number % _BUFFERED_SLOTS * _BUFFERED.size
        bits, data = _BUFFERED.unpack_from(self._page, at)
        return bits, data
