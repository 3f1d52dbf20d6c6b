# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A socket to a backend that shows the conversation it carries, in readable lines.

Knows how messages look to people; changes nothing of what passes.
"""

import array
import enum
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from vhost.errors import ProtocolError
from vhost.protocol import (
    U64,
    Channel,
    Connection,
    GetFeatures,
    GetProtocolFeatures,
    Message,
    ProtocolFeature,
    Reply,
    ReplyRule,
    Request,
    SetFeatures,
    SetProtocolFeatures,
    Side,
    VirtioFeature,
)

__all__ = ("Tap",)


class Tap(socket.socket):
    """A Unix stream socket for a frontend.

    :param show: gets a line for each message: ``> `` to the backend, ``< `` back.
    :param features: the device's own feature bits, by name.
    """

    def __init__(self, show: Callable[[str], None], features: type[enum.IntFlag] | None = None) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        #: Messages that passed, both directions.
        self.messages = 0
        self._show = show
        self._virtio = [*(features or ()), *VirtioFeature]
        # Both ends of the conversation, so that what is negotiated is known when it matters.
        self._backend = Connection(Channel.FRONTEND, Side.RESPONDER)
        self._frontend = Connection(Channel.FRONTEND, Side.REQUESTER)
        self._unanswered: deque[Request] = deque()

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        data = b"".join(buffers)
        sent = super().sendmsg([data], ancdata, flags)
        self._watch(self._backend, data[:sent], ancdata)
        return sent

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0) -> Any:
        result = super().recvmsg(bufsize, ancbufsize, flags)
        self._watch(self._frontend, result[0], result[1])
        return result

    def close(self) -> None:
        self._backend.close()
        self._frontend.close()
        super().close()

    def _watch(self, end: Connection, data: bytes, ancillary: Any) -> None:
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(bytes(payload))
        try:
            end.receive(data, [os.dup(fd) for fd in fds])
            while (event := end.next_event()) is not None:
                if isinstance(event, Request):
                    self._request(event)
                elif isinstance(event, Reply):
                    self._reply(event)
        except ProtocolError as error:
            self._show(f"? {error}")

    def _request(self, request: Request) -> None:
        message, fds = request.message, request.fd_count
        self._line(">", self._named(message, getattr(message, "features", None)) or str(message), fds)
        self._frontend.send(message, range(fds), need_reply=request.need_reply)
        if request.need_reply or request.rule is not ReplyRule.ACK:
            self._unanswered.append(request)

    def _reply(self, reply: Reply) -> None:
        request, value = self._unanswered.popleft(), reply.value
        if reply.code:
            self._line("<", f"{request.message.name} failed: {reply.code:#x}", reply.fd_count)
            self._backend.ack(request, reply.code)
        elif request.rule is not ReplyRule.VALUE:
            self._line("<", "ok", reply.fd_count)
            self._backend.ack(request)
        else:
            if isinstance(value, U64):
                text = self._named(request.message, value.value) or str(value.value)
            else:
                text = str(value).removeprefix(value.name).strip()
            self._line("<", text, reply.fd_count)
            self._backend.reply(request, value, range(reply.fd_count))

    def _line(self, way: str, text: str, fds: int) -> None:
        self.messages += 1
        self._show(f"{way} {text}{f' +{fds} fd' if fds else ''}")

    def _named(self, message: Message, number: int | None) -> str:
        """Feature bits by name; empty for what carries none."""
        if number is None:
            return ""
        bits: list[Any]
        if isinstance(message, GetFeatures | SetFeatures):
            bits = self._virtio
        elif isinstance(message, GetProtocolFeatures | SetProtocolFeatures):
            bits = list(ProtocolFeature)
        else:
            return ""
        names = " ".join(bit.name for bit in bits if bit & number)
        name = f"{message.name} " if isinstance(message, SetFeatures | SetProtocolFeatures) else ""
        return f"{name}{number:#x} {names}"
