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
    SetVringErr,
    SetVringKick,
    SetVringNum,
)
from vhost.virtqueue import DriverQueue, RingLayout

from .ram import Buffer, GuestRam

__all__ = ("Vring", "drain")

# Descriptors an indirect table of ours holds; a longer chain goes into the ring itself.
_TABLE_LEN: Final = 16
_TABLE_ALIGN: Final = 16


class Vring:
    """The memory of ring `index` and the eventfds that go with it.

    :param size: entries, a power of two up to 32768.
    :raises MemoryError: `ram` is too small for the ring.
    """

    def __init__(self, index: int, size: int, ram: GuestRam, *, event_idx: bool, indirect: bool) -> None:
        self.index = index
        self.size = size
        self._layout = RingLayout(size)
        self._ram = ram
        self._event_idx = event_idx
        self._table_len = min(_TABLE_LEN, size) if indirect else 0
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
        self._kick, self.call, self.err = self._events

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
            event_idx=self._event_idx,
            tables=tables[0].view if tables else None,
            tables_gpa=tables[0].gpa if tables else 0,
            table_len=self._table_len,
        )

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
        desc, avail, used = (self._ram.user_address(part.gpa) for part in self._parts[:3])
        address = SetVringAddr(self.index, flags=0, descriptor=desc, used=used, available=avail, log=0)
        return [
            (SetVringNum(self.index, self.size), ()),
            (SetVringBase(self.index, base), ()),
            (address, ()),
            (SetVringErr(self.index), (self.err,)),
            (SetVringCall(self.index), (self.call,)),
            (SetVringKick(self.index), (self._kick,)),
        ]

    def kick(self) -> None:
        """Tell the device to look at the ring."""
        os.eventfd_write(self._kick, 1)

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
