# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a frontend shares with a backend for one queue: the ring's memory and its event descriptors."""

import errno
import os
from typing import Final

from vhost.protocol import (
    Message,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEndian,
    SetVringErr,
    SetVringKick,
    SetVringNum,
    VirtioFeature,
    VringFlag,
)
from vhost.virtqueue import DriverQueue, RingLayout

from .negotiate import Options
from .ram import Buffer, GuestRam

__all__ = ("Vring", "drain")

# Descriptors an indirect table of ours holds; a longer chain goes into the ring itself.
_TABLE_LEN: Final = 16
_TABLE_ALIGN: Final = 16


class Vring:
    """The memory of ring `index` and the eventfds that go with it.

    :param options: its size, and what else does not depend on the backend.
    :param features: negotiated virtio features, which say what kind of ring it is.
    :raises MemoryError: `ram` is too small for the ring.

    :ivar logged: what the device writes to the ring goes to the dirty log.
    """

    def __init__(self, index: int, ram: GuestRam, options: Options, features: int) -> None:
        self.index = index
        self.size = options.queue_size
        self.logged = False
        packed = bool(features & VirtioFeature.RING_PACKED)
        self._layout = RingLayout(self.size, packed)
        self._ram = ram
        self._options = options
        self._features = features
        indirect = features & VirtioFeature.RING_INDIRECT_DESC
        self._table_len = min(_TABLE_LEN, self.size) if indirect else 0
        self._parts: list[Buffer] = []
        self._events: list[int] = []
        self._driver: DriverQueue | None = None
        try:
            for _ in range(3):
                self._events.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self.lay_out()
        except BaseException:
            self.close()
            raise
        self.kick_fd, self.call, self.err = self._events

    def lay_out(self) -> None:
        """Start from scratch: a ring that is at 0, in memory that is all zero."""
        self._clear()
        layout = self._layout
        wanted = [
            (layout.descriptor, layout.DESCRIPTOR_ALIGN),
            (layout.avail, layout.avail_align),
            (layout.used, layout.used_align),
        ]
        if self._table_len:
            wanted.append((16 * self.size * self._table_len, _TABLE_ALIGN))
        for size, align in wanted:
            part = self._ram.alloc(size, align)
            self._parts.append(part)
            part.view[:] = bytes(size)
        desc, avail, used, *tables = self._parts
        self._driver = DriverQueue(
            layout,
            desc.view,
            avail.view,
            used.view,
            event_idx=bool(self._features & VirtioFeature.RING_EVENT_IDX),
            in_order=bool(self._features & VirtioFeature.IN_ORDER),
            big_endian=self._options.big_endian,
            tables=tables[0].view if tables else None,
            tables_gpa=self.address(tables[0]) if tables else 0,
            table_len=self._table_len,
        )

    def address(self, buffer: Buffer) -> int:
        """What the ring calls the first byte of `buffer`."""
        iommu = self._options.iommu
        return buffer.gpa if iommu is None else iommu.iova(buffer.gpa, buffer.size)

    @property
    def polled(self) -> bool:
        """Whether nobody calls us."""
        return not self._options.call

    @property
    def max_chain(self) -> int:
        """The most descriptors of a request; a longer one is forbidden even where a table has room."""
        return self.size

    @property
    def driver(self) -> DriverQueue:
        """The ring as its driver sees it.

        It holds on to the ring's memory, so keep no reference to it where an exception may pass.

        :raises ConnectionAbortedError: it is closed.
        """
        self.check_open()
        assert self._driver is not None
        return self._driver

    def check_open(self) -> None:
        """Complain if there is no ring any more.

        :raises ConnectionAbortedError: it is closed.
        """
        if self._driver is None:
            raise ConnectionAbortedError(errno.ECONNABORTED, f"queue {self.index} is closed")

    def messages(self, base: int) -> list[tuple[Message, tuple[int, ...]]]:
        """What to send, with which descriptors, for the backend to serve the ring from `base` on."""
        for event in self._events:
            drain(event)
        kick, call = self._options.kick, self._options.call
        endian: list[tuple[Message, tuple[int, ...]]] = []
        if self._options.big_endian:
            endian.append((SetVringEndian(self.index, 1), ()))
        return [
            (SetVringNum(self.index, self.size), ()),
            *endian,
            (SetVringBase(self.index, base), ()),
            (self.addresses(), ()),
            (SetVringErr(self.index), (self.err,)),
            (SetVringCall(self.index, not call), (self.call,) if call else ()),
            (SetVringKick(self.index, not kick), (self.kick_fd,) if kick else ()),
        ]

    def addresses(self) -> SetVringAddr:
        """Where the parts of the ring are, and whether what is written to them is logged.

        The log address is the used part's, an I/O address with an IOMMU, logged or not: some back-ends let
        nothing but the flag change while the ring runs.
        """
        parts = self._parts[:3]
        if self._options.iommu is None:
            desc, avail, used = (self._ram.user_address(part.gpa) for part in parts)
        else:
            desc, avail, used = map(self.address, parts)
        flags = VringFlag.LOG if self.logged else 0
        return SetVringAddr(self.index, flags, desc, used, avail, self.address(parts[2]))

    def kick(self) -> None:
        """Tell the device to look at the ring, unless it does so by itself."""
        if self._options.kick:
            os.eventfd_write(self.kick_fd, 1)

    def _clear(self) -> None:
        self._driver = None
        for part in self._parts:
            self._ram.free(part)
        self._parts.clear()

    def close(self) -> None:
        """Give back memory and descriptors."""
        self._clear()
        for event in self._events:
            os.close(event)
        self._events.clear()


def drain(event: int) -> None:
    """Take all signals out of an eventfd; there may be none."""
    try:
        os.eventfd_read(event)
    except BlockingIOError:
        pass
