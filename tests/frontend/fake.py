# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A backend in a thread that does what a test tells it to, and a device side of the ring made by hand."""

import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from vhost.errors import RemoteProtocolError
from vhost.io import recv_fds, send_fds
from vhost.protocol import (
    U64,
    AddMemReg,
    Channel,
    Closed,
    ConfigReply,
    Connection,
    GetConfig,
    GetFeatures,
    GetMaxMemSlots,
    GetProtocolFeatures,
    GetQueueNum,
    GetVringBase,
    LogBase,
    Message,
    Payload,
    ProtocolFeature,
    Request,
    SetLogBase,
    SetMemTable,
    SetVringAddr,
    SetVringCall,
    SetVringErr,
    SetVringKick,
    Side,
    VirtioFeature,
    VringBase,
)

FEATURES = VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.RING_EVENT_IDX
PROTOCOL = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG


class Fake(threading.Thread):
    """Answers as the specification says, except where `script` has another answer for a message.

    :param script: what to do about a message instead of the usual.
    """

    def __init__(
        self,
        *,
        features: int = FEATURES,
        protocol: int = PROTOCOL,
        queues: int = 1,
        slots: int = 32,
        script: Mapping[type[Message], "Callable[[Fake, Request], object]"] | None = None,
    ) -> None:
        super().__init__(name="fake backend")
        self.features, self.protocol, self.queues, self.slots = features, protocol, queues, slots
        self.space = bytearray(range(64))
        self.script = script or {}
        self.peer, self.sock = socket.socketpair()
        self.sock.settimeout(20)
        self.seen: list[Message] = []
        self.acks_asked: list[bool] = []
        self.rejected: list[str] = []
        self.address: dict[int, SetVringAddr] = {}
        self.fds: dict[type[Message], int] = {}
        self._connection = Connection(Channel.FRONTEND, Side.RESPONDER)
        self._memory: mmap.mmap | None = None
        self._base_user = 0
        self._used = 0

    # ---- the conversation ----

    def run(self) -> None:
        try:
            while self._serve():
                pass
        except (OSError, RemoteProtocolError):
            pass  # the test, or its script, has ended the conversation
        self.hang_up()

    def _serve(self) -> bool:
        while (event := self._connection.next_event()) is None:
            self._connection.receive(*recv_fds(self.sock, 4096))
        if isinstance(event, Closed):
            return False
        if not isinstance(event, Request):
            self.rejected.append(str(event))
            return False
        self.seen.append(event.message)
        self.acks_asked.append(event.need_reply)
        self.script.get(type(event.message), Fake.usual)(self, event)
        return True

    def usual(self, request: Request) -> None:
        """What the specification says."""
        match request.message:
            case GetFeatures():
                self.reply(request, U64(self.features))
            case GetProtocolFeatures():
                self.reply(request, U64(self.protocol))
            case GetQueueNum():
                self.reply(request, U64(self.queues))
            case GetMaxMemSlots():
                self.reply(request, U64(self.slots))
            case SetLogBase(size=size, offset=offset):
                self.reply(request, LogBase(size, offset))
            case GetVringBase(index):
                self.reply(request, VringBase(index, self._used))
            case GetConfig(offset=offset, size=size):
                self.reply(request, ConfigReply(offset, 0, bytes(self.space[offset : offset + size])))
            case SetMemTable() | AddMemReg():
                self._map(request)
                self.ack(request)
            case SetVringAddr() as address:
                self.address[address.index] = address
                self.ack(request)
            case SetVringKick() | SetVringCall() | SetVringErr():
                self._close_fd(type(request.message))
                self.fds[type(request.message)] = request.take_fd()
                self.ack(request)
            case _:
                self.ack(request)

    def encode(self, request: Request, value: Payload, fds: Sequence[int] = ()) -> bytes:
        """The bytes of an answer."""
        return self._connection.reply(request, value, fds)[0]

    def reply(self, request: Request, value: Payload, fds: Sequence[int] = ()) -> None:
        self.write(self.encode(request, value, fds), fds)

    def encode_ack(self, request: Request, code: int = 0) -> bytes:
        """The bytes of an acknowledgement, none if none is due."""
        answer = self._connection.ack(request, code)
        return answer[0] if answer else b""

    def ack(self, request: Request, code: int = 0) -> None:
        if answer := self.encode_ack(request, code):
            self.write(answer)

    def write(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send anything at all."""
        send_fds(self.sock, data, fds)

    def hang_up(self) -> None:
        """Close the connection from this side."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already

    # ---- the ring, by hand ----

    def _map(self, request: Request) -> None:
        message = request.message
        assert isinstance(message, SetMemTable | AddMemReg)
        region = message.regions[0] if isinstance(message, SetMemTable) else message.region
        fd = request.take_fd()
        try:
            self._memory = mmap.mmap(fd, region.size)
        finally:
            os.close(fd)
        self._base_user = region.user_addr

    def put(self, layout: str, user_address: int, *values: int) -> None:
        """Write into guest memory, at an address as the front-end names it."""
        assert self._memory is not None
        struct.pack_into(layout, self._memory, user_address - self._base_user, *values)

    def get(self, layout: str, user_address: int) -> tuple[int, ...]:
        assert self._memory is not None
        return struct.unpack_from(layout, self._memory, user_address - self._base_user)

    def kicked(self) -> int:
        """How often the front-end has kicked since the last time."""
        return os.eventfd_read(self.fds[SetVringKick])

    def use(self, head: int, written: int, *, call: bool = True) -> None:
        """Return a chain as a device does."""
        used = self.address[0].used
        self.put("<II", used + 4 + 8 * (self._used % 128), head, written)
        self._used += 1
        self.put("<H", used + 2, self._used & 0xFFFF)
        if call:
            self.signal(SetVringCall)

    def signal(self, which: type[Message]) -> None:
        """Write to the call or the err descriptor."""
        os.eventfd_write(self.fds[which], 1)

    # ---- the end ----

    def _close_fd(self, which: type[Message]) -> None:
        if which in self.fds:
            os.close(self.fds.pop(which))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.peer.close()
        self.hang_up()
        self.join(20)
        assert not self.is_alive()
        self.sock.close()
        self._connection.close()
        for which in list(self.fds):
            self._close_fd(which)
        if self._memory is not None:
            self._memory.close()
