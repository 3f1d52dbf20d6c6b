# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A front-end without comfort, and what the tests of the back-end watch: log lines, descriptors, mappings."""

import logging
import mmap
import os
import re
import select
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from vhost.io import recv_fds, send_fds
from vhost.protocol import (
    U64,
    Channel,
    Connection,
    GetFeatures,
    GetProtocolFeatures,
    GetVringBase,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Reply,
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
    Side,
    VirtioFeature,
    VringBase,
)
from vhost.virtqueue import DriverQueue, RingLayout

TIMEOUT = 5.0

RAM_SIZE = 1 << 20
GPA = 0x4000_0000
USER = 0x7F00_0000_0000
RING_STRIDE = 0x4000  # descriptor table, avail ring and used ring, a page each
DATA = 0x80000

FEATURES = (
    VirtioFeature.VERSION_1
    | VirtioFeature.PROTOCOL_FEATURES
    | VirtioFeature.RING_INDIRECT_DESC
    | VirtioFeature.RING_EVENT_IDX
)
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.CONFIG
)


def readable(fd: int, timeout: float = TIMEOUT) -> bool:
    """Whether `fd` can be read before the time is over."""
    return bool(select.select([fd], [], [], timeout)[0])


class DriverRing:
    """One ring of the peer: its memory, its eventfds, and its driver.

    :param table_len: entries of each indirect table, 0 for direct chains.
    """

    def __init__(self, peer: "Peer", index: int, size: int, table_len: int = 0) -> None:
        self.peer, self.index, self.size = peer, index, size
        self.layout = RingLayout(size, bool(peer.connection.features & VirtioFeature.RING_PACKED))
        self.offset = index * RING_STRIDE
        self.data = DATA + index * 0x20000
        self._answers: dict[int, int] = {}  # places of answers, by head; by hand, chains use the first
        self.kick, self.call, self.err = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3))
        self.driver = DriverQueue(
            self.layout,
            self.memory(0, self.layout.descriptor),
            self.memory(0x1000, self.layout.avail),
            self.memory(0x2000, self.layout.used),
            event_idx=bool(peer.connection.features & VirtioFeature.RING_EVENT_IDX),
            tables=self.memory(0x3000, 16 * size * table_len) if table_len else None,
            tables_gpa=peer.gpa + self.offset + 0x3000,
            table_len=table_len,
        )

    def memory(self, offset: int, size: int) -> memoryview:
        """A part of the ring's memory; 0 descriptors, 0x1000 avail, 0x2000 used, 0x3000 indirect tables."""
        return self.peer.view[self.offset + offset : self.offset + offset + size]

    def add(self, data: bytes, room: int, *, page: int = 0) -> int:
        """Queue a request, in buffers of its own from a page on, and show it to the device; no kick."""
        place = self.data + page * 0x1000
        answer = place + 0x10000
        gpa = self.peer.gpa
        head = self.driver.add([(gpa + place, len(data))] if data else [], [(gpa + answer, room)])
        assert head >= 0
        self._answers[head] = answer
        self.peer.view[place : place + len(data)] = data
        self.driver.publish()
        return head

    def kick_it(self) -> None:
        """The driver's notification."""
        os.eventfd_write(self.kick, 1)

    def answer(self) -> bytes:
        """Wait for one used chain; what the device wrote."""
        while not (used := self.driver.poll(1)):
            if not self.driver.calls_on():
                assert readable(self.call), f"ring {self.index}: no call"
                os.eventfd_read(self.call)
        return self.taken(used)

    def taken(self, used: Sequence[tuple[int, int]]) -> bytes:
        """What the device wrote to the one used chain."""
        ((head, written),) = used
        place = self._answers.pop(head, self.data + 0x10000)
        return bytes(self.peer.view[place : place + written])

    def request(self, data: bytes, room: int = 64) -> bytes:
        """One request and its answer."""
        self.add(data, room)
        self.kick_it()
        return self.answer()

    def close(self) -> None:
        del self.driver  # it holds the memory
        for fd in (self.kick, self.call, self.err):
            os.close(fd)


class Peer:
    """Speaks raw vhost-user on a connected socket; every read has a time limit."""

    gpa, user = GPA, USER

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(TIMEOUT)
        self.connection = Connection(Channel.FRONTEND, Side.REQUESTER)
        self.ram = self.memory()
        self.view = memoryview(mmap.mmap(self.ram, RAM_SIZE))
        self.rings: list[DriverRing] = []

    def memory(self) -> int:
        """A file with the guest's memory; closed with the peer."""
        fd = os.memfd_create("peer-ram", os.MFD_CLOEXEC)
        os.ftruncate(fd, RAM_SIZE)
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for ring in self.rings:
            ring.close()
        self.rings.clear()
        self.connection.close()
        self.sock.close()
        os.close(self.ram)
        self.view.release()

    # ---- messages ----

    def tell(self, message: Message, fds: Sequence[int] = (), *, need_reply: bool = False) -> None:
        """Send, and read nothing."""
        data, riding = self.connection.send(message, fds, need_reply=need_reply)
        assert send_fds(self.sock, data, riding) == len(data)

    def reply(self) -> Reply:
        """The next answer."""
        while (event := self.connection.next_event()) is None:
            self.connection.receive(*recv_fds(self.sock, 4096))
        assert isinstance(event, Reply), event
        return event

    def ask(self, message: Message, fds: Sequence[int] = ()) -> Reply:
        """Send a message that is answered: by its rule, or because REPLY_ACK was negotiated."""
        acks = bool(self.connection.protocol_features & ProtocolFeature.REPLY_ACK)
        self.tell(message, fds, need_reply=acks)
        return self.reply()

    def do(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message that must succeed."""
        reply = self.ask(message, fds)
        assert reply.code == 0, reply

    def refused(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message that must be refused."""
        reply = self.ask(message, fds)
        assert reply.code != 0, reply

    def value(self, message: Message) -> int:
        """The number a question is answered with."""
        value = self.ask(message).value
        assert isinstance(value, U64)
        return value.value

    def ended(self) -> bool:
        """Whether the back-end has closed the connection; waits for it."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    # ---- set-up, in steps ----

    def negotiate(self, features: int = FEATURES, protocol: int = PROTOCOL_FEATURES) -> None:
        """Features of both kinds; no owner yet."""
        assert not features & ~self.value(GetFeatures())
        offered = self.value(GetProtocolFeatures())
        self.tell(SetProtocolFeatures(protocol & offered))
        self.do(SetFeatures(features))

    def region(
        self, guest: int = GPA, size: int = RAM_SIZE, user: int = USER, offset: int = 0
    ) -> MemoryRegion:
        return MemoryRegion(guest, size, user, offset)

    def share(self) -> None:
        """Become the owner and hand over the memory."""
        self.do(SetOwner())
        self.do(SetMemTable((self.region(),)), [self.ram])

    def addresses(self, ring: DriverRing) -> SetVringAddr:
        place = self.user + ring.offset
        return SetVringAddr(ring.index, 0, place, place + 0x2000, place + 0x1000, 0)

    def ring(self, index: int = 0, size: int = 16, table_len: int = 0) -> DriverRing:
        """A ring in our memory that the back-end has not heard of."""
        ring = DriverRing(self, index, size, table_len)
        self.rings.append(ring)
        return ring

    def describe(self, ring: DriverRing, base: int = 0) -> None:
        """All about a ring but its kick descriptor, which starts it."""
        self.do(SetVringNum(ring.index, ring.size))
        self.do(SetVringBase(ring.index, base))
        self.do(self.addresses(ring))
        self.do(SetVringCall(ring.index), [ring.call])
        self.do(SetVringErr(ring.index), [ring.err])

    def start(self, ring: DriverRing, base: int = 0) -> None:
        """Describe, start and enable."""
        self.describe(ring, base)
        self.do(SetVringKick(ring.index), [ring.kick])
        self.do(SetVringEnable(ring.index, 1))

    def base(self, index: int = 0) -> int:
        """Stop a ring."""
        value = self.ask(GetVringBase(index)).value
        assert isinstance(value, VringBase)
        return value.base

    def ready(self, index: int = 0, size: int = 16) -> DriverRing:
        """From nothing to a running ring."""
        self.negotiate()
        self.share()
        ring = self.ring(index, size)
        self.start(ring)
        return ring


class Lines(logging.Handler):
    """The back-end's log lines, to be waited for."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen: list[tuple[str, str]] = []
        self._news = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._news:
            self.seen.append((record.levelname, record.getMessage()))
            self._news.notify_all()

    def wait(self, pattern: str, *, level: str | None = None, count: int = 1) -> None:
        """Wait until `count` lines match."""

        def enough() -> bool:
            found = [text for name, text in self.seen if level in (None, name) and re.search(pattern, text)]
            return len(found) >= count

        with self._news:
            assert self._news.wait_for(enough, TIMEOUT), f"{pattern!r} not logged, but {self.seen}"

    def having(self, pattern: str, level: str) -> list[str]:
        return [text for name, text in self.seen if name == level and re.search(pattern, text)]


def footprint() -> tuple[Counter[str], list[str]]:
    """What this process has open and what it has mapped of others' memory."""
    fds: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        try:
            fds[str(link.readlink())] += 1
        except FileNotFoundError:
            pass  # the listing itself
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:" in line]
    return fds, maps
