# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A front-end whose rings and buffers have I/O addresses, and which answers when the test says so."""

import mmap
import os
import select
import socket
from collections.abc import Callable

from tests.backend.peer import FEATURES, GPA, PROTOCOL_FEATURES, RAM_SIZE, TIMEOUT, USER, DriverRing, Peer
from vhost.protocol import (
    BackendIotlbMsg,
    Channel,
    Connection,
    IotlbMsg,
    IotlbType,
    ProtocolFeature,
    Request,
    SetBackendReqFd,
    SetLogBase,
    SetVringAddr,
    Side,
    VirtioFeature,
)

IOVA = 0x1000_0000
PAGE = 4096

TRANSLATED = FEATURES | VirtioFeature.ACCESS_PLATFORM
PROTOCOL = PROTOCOL_FEATURES | ProtocolFeature.BACKEND_REQ | ProtocolFeature.LOG_SHMFD
READ, WRITE, BOTH = 1, 2, 3

# Seconds in which nothing comes where nothing is to come.
QUIET = 0.05

ALL = IotlbMsg(IOVA, RAM_SIZE, USER, BOTH, IotlbType.UPDATE)
NOTHING = IotlbMsg(0, 1 << 63, 0, 0, IotlbType.INVALIDATE)


class Translated(Peer):
    """I/O addresses are those of memory from :data:`IOVA` on, unless `moved` says of a page where it is."""

    gpa = IOVA

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.channel: socket.socket | None = None
        self.moved: dict[int, int] = {}
        self.virtio_features = TRANSLATED

    def __exit__(self, *exc: object) -> None:
        if self.channel is not None:
            self.channel.close()
        super().__exit__(*exc)

    def addresses(self, ring: DriverRing) -> SetVringAddr:
        place = IOVA + ring.offset
        return SetVringAddr(ring.index, 0, place, place + 0x2000, place + 0x1000, 0)

    def begin(self) -> None:
        """All but rings."""
        self.negotiate(self.virtio_features, PROTOCOL)
        self.share()
        self.open_channel()

    def open_channel(self) -> None:
        """A new channel for the back-end to ask on."""
        if self.channel is not None:
            self.channel.close()
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.do(SetBackendReqFd(), [theirs.fileno()])
        self._new_questions()

    def _new_questions(self) -> None:
        self.questions = Connection(Channel.BACKEND, Side.RESPONDER)
        self.questions.features = TRANSLATED
        self.questions.protocol_features = PROTOCOL

    def fill(self, *, blocking: bool = False) -> int:
        """Leave no room in a new channel; how many bytes that took."""
        if self.channel is not None:
            self.channel.close()
        self.channel, theirs = socket.socketpair()
        sent = 0
        with theirs:
            theirs.setblocking(False)
            try:
                while True:
                    sent += theirs.send(bytes(4096))
            except BlockingIOError:
                theirs.setblocking(blocking)
                self.do(SetBackendReqFd(), [theirs.fileno()])
        self._new_questions()
        return sent

    def drain(self, sent: int) -> None:
        """Read what :meth:`fill` has sent."""
        assert self.channel is not None
        while sent:
            sent -= len(self.channel.recv(min(sent, 1 << 16)))

    def dirty_log(self) -> Callable[[], set[int]]:
        """Have memory logged; gives the offsets of the pages that were written since the last time."""
        size = (GPA + RAM_SIZE) // PAGE // 8
        fd = os.memfd_create("dirty-log")
        os.ftruncate(fd, size)
        view = mmap.mmap(fd, size)
        self.do(SetLogBase(size, 0), [fd])
        os.close(fd)

        def pages() -> set[int]:
            bits = [(8 * at, byte) for at, byte in enumerate(bytes(view)) if byte]
            view[:] = bytes(size)
            return {(at + n) * PAGE - GPA for at, byte in bits for n in range(8) if byte >> n & 1}

        return pages

    def asked(self, timeout: float = TIMEOUT) -> BackendIotlbMsg | None:
        """The next message of the back-end; None: none has come."""
        assert self.channel is not None
        while (event := self.questions.next_event()) is None:
            if not select.select([self.channel], [], [], timeout)[0]:
                return None
            self.questions.receive(self.channel.recv(4096))
        assert isinstance(event, Request), event
        assert isinstance(event.message, BackendIotlbMsg)
        return event.message

    def ask_for(self, count: int) -> list[BackendIotlbMsg]:
        """What the back-end asks for next: so many ranges and no others, though it may repeat one when it is
        kicked."""
        found: dict[BackendIotlbMsg, None] = {}
        while len(found) < count:
            message = self.asked()
            assert message is not None, f"{len(found)} messages, not {count}: {list(found)}"
            found[message] = None
        while (message := self.asked(QUIET)) is not None:
            assert message in found, f"{count} messages {list(found)}, and then {message}"
        return list(found)

    def map(self, iova: int, perm: int = BOTH) -> None:
        """Tell the translation of a page."""
        page = iova & -PAGE
        user = self.moved.get(page, page - IOVA + USER)
        self.do(IotlbMsg(page, PAGE, user, perm, IotlbType.UPDATE))

    def serve(self, count: int) -> list[BackendIotlbMsg]:
        """Answer `count` messages one by one, page by page."""
        found = []
        for _ in range(count):
            message = self.asked()
            assert message is not None, f"{len(found)} messages, not {count}: {found}"
            assert message.type == IotlbType.MISS
            self.map(message.iova)
            found.append(message)
        return found

    def answer(self, ring: DriverRing) -> tuple[bytes, int]:
        """The answer to a request, once the back-end has been told all that it asks for, and how many ranges
        that was."""
        assert self.channel is not None
        asked: set[int] = set()
        while not (used := ring.driver.poll(1)):
            if (message := self.asked(0)) is not None:
                assert message.type == IotlbType.MISS
                self.map(message.iova)
                asked.add(message.iova)
            elif not ring.driver.calls_on():
                ready, _, _ = select.select([self.channel, ring.call], [], [], TIMEOUT)
                assert ready, f"ring {ring.index}: no call, and nothing asked"
                if ring.call in ready:
                    os.eventfd_read(ring.call)
        return ring.taken(used), len(asked)
