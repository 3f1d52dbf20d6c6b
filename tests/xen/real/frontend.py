# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A vhost-user front-end for a domain whose driver lays out rings and requests by itself, in its own memory.

It knows where memory and rings are, and passes that on; it has no guest memory, and looks at none.
"""

import os
import select
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pyxenctrl import EventChannels
from vhost.frontend.link import Link
from vhost.frontend.wait import wait
from vhost.protocol import (
    ConfigReply,
    GetConfig,
    GetFeatures,
    GetProtocolFeatures,
    GetVringBase,
    MemoryRegion,
    Message,
    Payload,
    ProtocolFeature,
    SetFeatures,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringErr,
    SetVringKick,
    SetVringNum,
    VirtioFeature,
    VringBase,
)

__all__ = (
    *("FEATURES", "FOREIGN", "GRANT", "GRANT_BIT", "NO_ADVANCE", "NO_ADVANCE_8", "PROTOCOL_FEATURES"),
    *("EventBridge", "Frontend", "RingPlace", "region"),
)

FOREIGN, GRANT, NO_ADVANCE = 0x1, 0x2, 0x100
NO_ADVANCE_8 = 0x8  # what front-ends of the crate vm-memory send in its place
GRANT_BIT = 1 << 63  # of an address that is a grant reference

FEATURES = VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES
PROTOCOL_FEATURES = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.XEN_MMAP


@dataclass(frozen=True, slots=True)
class RingPlace:
    """A split ring: its entries, and the addresses of its parts, which may lie in different regions."""

    size: int
    descriptor: int
    avail: int
    used: int


def region(domid: int, address: int, size: int, flags: int) -> MemoryRegion:
    """A region of a domain's memory: where a front-end for Xen sees it, is its guest address.

    :param size: bytes.
    :param flags: as they go over the wire: FOREIGN, GRANT, and one of the bits for "not in advance".
    """
    return MemoryRegion(address, size, address, 0, flags, domid)


class Frontend:
    """A session with a back-end. A context manager; at its end the connection is closed.

    :param path: the back-end's socket.
    :param seconds: how long each answer may take.
    """

    def __init__(self, path: Path, *, seconds: float = 60) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        self._link = Link(sock)
        self._seconds = seconds
        self._kicks: dict[int, int] = {}
        self._calls: dict[int, int] = {}
        self._errors: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection, without stopping any ring before."""
        self._link.close()
        for fds in (self._kicks, self._calls, self._errors):
            for fd in fds.values():
                os.close(fd)
            fds.clear()

    def tell(self, message: Message, fds: Sequence[int] = ()) -> Payload | None:
        """Sends a message; what it is answered with, if its answer has a value.

        :raises RefusedError: the back-end refuses.
        """
        return wait(self._link.exchange(message, fds), self._seconds)

    def negotiate(self, features: int = FEATURES, protocol: int = PROTOCOL_FEATURES) -> None:
        """Features of both kinds, which the back-end must offer, and ownership."""
        offered = wait(self._link.ask(GetFeatures()), self._seconds)
        assert not features & ~offered, f"{features:#x} wanted, {offered:#x} offered"
        offered = wait(self._link.ask(GetProtocolFeatures()), self._seconds)
        assert not protocol & ~offered, f"protocol features {protocol:#x} wanted, {offered:#x} offered"
        self.tell(SetProtocolFeatures(protocol))
        self.tell(SetOwner())
        self.tell(SetFeatures(features))

    def share(self, regions: Sequence[MemoryRegion], device: str = "/dev/null") -> None:
        """Sets the memory table.

        :param device: what is opened for the descriptor that has to come with each region.
        """
        fds = [os.open(device, os.O_RDWR | os.O_CLOEXEC) for _ in regions]
        try:
            self.tell(SetMemTable(tuple(regions)), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def start(self, place: RingPlace, *, index: int = 0, base: int = 0, polled: bool = False) -> None:
        """Sets a ring up, starts and enables it.

        :param polled: nobody will kick; without, see :meth:`kick`.
        """
        for fds in (self._kicks, self._calls, self._errors):
            if index not in fds:
                fds[index] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.tell(SetVringNum(index, place.size))
        self.tell(SetVringBase(index, base))
        self.tell(SetVringAddr(index, 0, place.descriptor, place.used, place.avail, 0))
        self.tell(SetVringCall(index), [self._calls[index]])
        self.tell(SetVringErr(index), [self._errors[index]])
        if polled:
            self.tell(SetVringKick(index, no_fd=True))
        else:
            self.tell(SetVringKick(index), [self._kicks[index]])
        self.tell(SetVringEnable(index, 1))

    def stop(self, index: int = 0) -> int:
        """Stops a ring; the index in the avail ring to go on from."""
        answer = self.tell(GetVringBase(index))
        assert isinstance(answer, VringBase), answer
        return answer.base

    def kick(self, index: int = 0) -> None:
        """Tells the back-end that there are requests."""
        os.eventfd_write(self._kicks[index], 1)

    def call_fd(self, index: int = 0) -> int:
        """The eventfd by which the back-end says that requests are done."""
        return self._calls[index]

    def called(self, seconds: float, index: int = 0) -> bool:
        """Waits until the back-end says that requests are done, and takes that; whether it came in time."""
        if readable(self._calls[index], seconds):
            os.eventfd_read(self._calls[index])
            return True
        return False

    def broken(self, index: int = 0, seconds: float = 0) -> bool:
        """Whether the back-end has given a ring up, now or in so many seconds; takes the notice of that."""
        if readable(self._errors[index], seconds):
            os.eventfd_read(self._errors[index])
            return True
        return False

    def config(self, offset: int, size: int) -> bytes:
        """A part of the device's configuration space."""
        answer = self.tell(GetConfig(offset, size, 0))
        assert isinstance(answer, ConfigReply), answer
        return answer.data


class EventBridge:
    """Turns events of a driver's domain into kicks of a ring, and calls into events, in a thread of its own.

    A context manager; the ring must have been started before, and must not be closed inside.

    :param domid: the driver's domain.
    :param port: that it has made for this one.
    :raises OSError: there is no such port.
    """

    def __init__(self, frontend: Frontend, domid: int, port: int, index: int = 0) -> None:
        self.kicks = self.calls = 0
        self._frontend, self._index = frontend, index
        self._channels = EventChannels()
        self._port = self._channels.bind_interdomain(domid, port)
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._carry, name="event bridge")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join()
        os.close(self._end)
        self._channels.close()

    def _carry(self) -> None:
        call = self._frontend.call_fd(self._index)
        while self._end not in (ready := select.select([self._end, self._channels, call], [], [])[0]):
            if self._channels in ready:
                self._channels.unmask(self._channels.pending())
                self._frontend.kick(self._index)
                self.kicks += 1
            if call in ready:
                os.eventfd_read(call)
                self._channels.notify(self._port)
                self.calls += 1


def readable(fd: int, seconds: float) -> bool:
    # Whether it can be read before the time is over.
    return bool(select.select([fd], [], [], seconds)[0])
