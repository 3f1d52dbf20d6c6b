# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One end of one vhost-user socket, without the socket: bytes and descriptors in, events out.

Knows framing, order, negotiation and who owns a descriptor; not what a message is for, and nothing of I/O.
"""

import struct
from collections import deque
from collections.abc import Sequence
from importlib import import_module

from vhost.errors import LocalProtocolError, RemoteProtocolError

from .events import Closed, Event, Rejected, Reply, Request
from .features import ProtocolFeature
from .framing import Frame, Framer
from .header import Channel, Flag, Side
from .message import REGISTRY, U64, Message, Payload, ReplyRule
from .quirks import Quirks
from .terms import Terms

__all__ = ("Connection",)

# Members of enums, which take longer to look up than everything around them.
_RESPONDER, _REQUESTER = Side.RESPONDER, Side.REQUESTER
_ACK, _STATUS, _VALUE = ReplyRule.ACK, ReplyRule.STATUS, ReplyRule.VALUE
_GPU = Channel.GPU
_REPLY, _NEED_REPLY = int(Flag.REPLY), int(Flag.NEED_REPLY)
_REPLY_ACK = int(ProtocolFeature.REPLY_ACK)
_QUIRKS = Quirks()
_HEADER = struct.Struct("=III")
_SUCCESS = struct.Struct("=IIIQ")
_U64_SIZE = 8
_BY_BACKEND = ProtocolFeature.BACKEND_SEND_FD


_MODULES = {
    Channel.FRONTEND: "vhost.protocol.frontend_messages",
    Channel.BACKEND: "vhost.protocol.backend_messages",
    Channel.GPU: "vhost.protocol.gpu_messages",
}


class _Term:
    """An attribute of the connection that lives in its terms."""

    def __set_name__(self, owner: "type[Connection]", name: str) -> None:
        self._name = name

    def __get__(self, connection: "Connection", owner: "type[Connection]") -> int:
        value: int = getattr(connection.terms, self._name)
        return value

    def __set__(self, connection: "Connection", value: int) -> None:
        setattr(connection.terms, self._name, int(value))


class Connection:
    """One end of one socket.

    :param channel: which socket; :param side: which end of it.
    :param quirks: how far to go along with the peer.
    :param max_payload: bytes of payload to take at most; by default what the channel needs.
    :param max_regions: regions in one SET_MEM_TABLE that we send, and take from a peer without quirks.

    :ivar features: negotiated virtio features; *offered_features* what the back-end offers.
    :ivar protocol_features: negotiated protocol features, on the GPU socket those of GPU;
        *offered_protocol_features* what the peer offers.
    :ivar terms: these and what else has been agreed on.

    The four sets are kept here as the messages about them go by. They may also be set, and have to be on the
    back-end request socket, where no negotiation passes.
    """

    features = _Term()
    protocol_features = _Term()
    offered_features = _Term()
    offered_protocol_features = _Term()

    def __init__(
        self,
        channel: Channel,
        side: Side,
        *,
        quirks: Quirks | None = None,
        max_payload: int | None = None,
        max_regions: int = 8,
    ) -> None:
        self.channel = channel
        self.side = side
        self._version = channel.version
        self.terms = Terms(max_regions=max_regions, quirks=quirks or _QUIRKS)
        self._max_payload = channel.max_payload if max_payload is None else max_payload
        self._framer = Framer(channel, side, self._max_payload, max(max_regions, 32))
        import_module(_MODULES[channel])  # enters them
        self._messages = REGISTRY[channel]
        self._pending: deque[tuple[Message, ReplyRule]] = deque()  # sent and not answered yet
        self._event: Event | None = None  # the one the caller is working on
        self._undo: tuple[Request, Terms] | None = None  # what to go back to if that request is refused
        self._error: RemoteProtocolError | None = None
        self._over = False
        self._closed = False

    # ---- receiving -----------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview, fds: Sequence[int] = ()) -> None:
        """Take what one read brought.

        :param data: bytes of the stream; empty for its end.
        :param fds: descriptors that came with them. They are ours from here on, whatever happens. They belong
            to the last message that begins in *data*, or else to the message in progress.
        """
        self._framer.receive(data, fds, ignore=self._closed or self._error is not None)

    def wanted(self) -> int:
        """How many bytes to ask for in the next read: a hint, between 4 KiB and 256 KiB."""
        return min(max(self._framer.missing, 4096), 256 << 10)

    @property
    def idle(self) -> bool:
        """Whether nothing has been received that was not an event yet: what comes next begins a message."""
        return self._framer.idle

    @property
    def pending(self) -> int:
        """How many requests of ours still wait for their answer."""
        return len(self._pending)

    def next_event(self) -> Event | None:
        """What has arrived, in order; None if more has to be read first.

        Closes the descriptors of the event before that nobody took.

        :raises RemoteProtocolError: the stream is out of step or an answer is wrong. Nothing more can be
            received; the same error is raised again.
        """
        if self._event is not None:
            if self._event.fd_count:
                self._event.drop()
            self._event = self._undo = None
        if self._error is not None:
            raise self._error
        try:
            frame = None if self._closed else self._framer.next_frame()
            if frame is not None:
                self._event = self._request(frame) if self.side is _RESPONDER else self._reply(frame)
            elif self._framer.ended and not self._over and not self._closed:
                self._over = True
                self._event = Closed()
        except RemoteProtocolError as error:
            self._error = error
            self._framer.close()
            raise
        return self._event

    def _request(self, frame: Frame) -> Request | Rejected:
        code, flags, _ = frame.header
        kind = self._messages.get(code)
        wants_ack = flags & _NEED_REPLY
        acked = bool(wants_ack) and self._acks
        try:
            if kind is None:
                raise RemoteProtocolError(f"request {code} on the socket for {self.channel.label} is unknown")
            if kind.gate is not None and (reason := kind.gate.closed(self.terms)):
                raise RemoteProtocolError(f"{kind.name} is not allowed: {reason}")
            message = kind.decode(frame.payload, self.terms)
            least, most = message.fd_range()
            if frame.fd_count or least:
                self._check_fds(kind.name, frame.fd_count, least, most + message.stray_fds(self.terms))
        except RemoteProtocolError as error:
            frame.drop()
            if kind is None:
                rule = ReplyRule.NEVER if self.channel is _GPU else _ACK
                return Rejected(code, f"request {code}", acked, error, None, rule)
            rule = kind.rule_of_kind(self.terms)
            return Rejected(code, kind.name, acked and rule is _ACK, error, kind, rule)
        before = None
        if kind.settle is not Message.settle:
            before = self.terms.copy()
            message.settle(self.terms)
        rule = message.rule(self.terms)
        # A request that itself brings REPLY_ACK is acknowledged, as every known back-end does.
        acked = bool(wants_ack) and (acked or self._acks)
        request = Request(message, acked and rule is _ACK, rule, _fds=frame.fds)
        if before is not None:
            self._undo = request, before
        return request

    def _reply(self, frame: Frame) -> Reply:
        try:
            if not self._pending:
                raise RemoteProtocolError(
                    f"an answer to request {frame.header.request}, but nothing was asked"
                )
            message, rule = self._pending.popleft()
            if frame.header.request != message.request:
                raise RemoteProtocolError(
                    f"an answer to request {frame.header.request} instead of {message.name}"
                )
            if rule is _VALUE:
                value = message.decode_reply(frame.payload, self.terms)
            else:
                value = U64.decode(frame.payload, self.terms)
            code = self._check_answer(message, rule, value, frame.fd_count)
            message.settle_reply(value, self.terms)
        except RemoteProtocolError:
            frame.drop()
            raise
        return Reply(value, message, code, _fds=frame.fds)

    def _check_fds(self, what: str, count: int, least: int, most: int) -> None:
        if not least <= count <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            raise RemoteProtocolError(f"{what} has {count} descriptors, not {wanted}")
        if count and self.channel is Channel.BACKEND and not self.protocol_features & _BY_BACKEND:
            raise RemoteProtocolError(f"{what} has descriptors, but {_BY_BACKEND!r} is not negotiated")

    @staticmethod
    def _check_answer(message: Message, rule: ReplyRule, value: Payload, fds: int) -> int:
        """What an answer means, 0 for success; an answer without descriptors may always tell a failure."""
        code = message.code(value, fds) if rule is _VALUE or not isinstance(value, U64) else value.value
        least, most = message.reply_fd_range(value) if rule is not _ACK else (0, 0)
        if not (0 if code else least) <= fds <= most:
            raise RemoteProtocolError(f"the answer to {message.name} has {fds} descriptors: {value}")
        return code

    @property
    def _acks(self) -> bool:
        return self.channel is not _GPU and bool(self.terms.protocol_features & _REPLY_ACK)

    # ---- sending -------------------------------------------------------------------------------------------

    def send(
        self, message: Message, fds: Sequence[int] = (), *, need_reply: bool | None = None
    ) -> tuple[bytes, list[int]]:
        """The bytes and descriptors of a request of ours, to be written together.

        The descriptors stay the caller's. Answers arrive in the order of the requests they belong to.

        :param need_reply: ask for an acknowledgement. None: do so if REPLY_ACK is negotiated and the message
            has no answer of its own.
        :raises LocalProtocolError: the message is not allowed now, has the wrong number of descriptors, or a
            field does not fit.
        """
        self._check_open(_REQUESTER, "send requests")
        if message.channel is not self.channel:
            raise LocalProtocolError(f"{message.name} is not for the socket for {self.channel.label}")
        if message.gate is not None and (reason := message.gate.closed(self.terms)):
            raise LocalProtocolError(f"{message.name} may not be sent: {reason}")
        try:
            self._check_fds(message.name, len(fds), *message.fd_range())
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from None
        rule = message.rule(self.terms)
        if need_reply and not self._acks:
            raise LocalProtocolError(f"{message.name} cannot ask for a reply: REPLY_ACK is not negotiated")
        if need_reply is None:
            need_reply = rule is _ACK and self._acks and message.asks_ack
        data = self._pack(message.request, _NEED_REPLY if need_reply else 0, message, None)
        if need_reply or rule in (_VALUE, _STATUS):
            self._pending.append((message, rule))
        message.settle(self.terms)
        return data, list(fds)

    def reply(self, request: Request, value: Payload, fds: Sequence[int] = ()) -> tuple[bytes, list[int]]:
        """The bytes and descriptors of the answer to a request that is always answered.

        The descriptors stay the caller's.

        :raises LocalProtocolError: the request takes no such answer, or has been answered.
        """
        message, rule = request.message, request.rule
        if rule not in (_VALUE, _STATUS):
            raise LocalProtocolError(f"{message.name} takes no answer of its own: use ack()")
        wanted = message.reply_type if rule is _VALUE else U64
        if not isinstance(value, wanted):
            raise LocalProtocolError(f"{message.name} is answered with {wanted.__name__}, not with {value!r}")
        try:
            self._check_answer(message, rule, value, len(fds))
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from None
        data = self._answer(request, value)
        message.settle_reply(value, self.terms)
        return data, list(fds)

    def ack(self, request: Request | Rejected, code: int = 0) -> tuple[bytes, list[int]] | None:
        """The acknowledgement of a request, None if none is due.

        For a request that is always answered, and failed: the form its answer then has.

        :param code: 0 for success. A refused request takes back what it changed in the negotiated state. For
            a :class:`Rejected`, which cannot have succeeded, 0 means 1.
        :raises LocalProtocolError: the request is answered with a value, or has been answered.
        """
        if type(request) is Request and request.rule is _ACK and not code:
            # What nearly all requests come to.
            if not request.need_reply:
                return None
            self._check_open(_RESPONDER, "answer")
            if not request.answered:
                request.answered = True
                return _SUCCESS.pack(request.message.request, _REPLY | self._version, _U64_SIZE, 0), []
        if isinstance(request, Rejected):
            code = code or 1
        if code and self._undo is not None and self._undo[0] is request:
            self.terms = self._undo[1]
        if request.rule is _VALUE:
            kind = request.message if isinstance(request, Request) else request.kind
            if not code or kind is None:
                raise LocalProtocolError(f"{request} is answered with a value: use reply()")
            return self._answer(request, kind.failure(code)), []
        if request.rule is _STATUS and isinstance(request, Request):
            return self.reply(request, U64(code))
        if request.need_reply or request.rule is _STATUS:
            return self._answer(request, U64(code)), []
        return None

    def _answer(self, request: Request | Rejected, value: Payload) -> bytes:
        self._check_open(_RESPONDER, "answer")
        if request.answered:
            raise LocalProtocolError(f"{request} has been answered")
        if isinstance(request, Request):
            message: Message | None = request.message if request.rule is _VALUE else None
            data = self._pack(request.message.request, _REPLY, value, message)
        else:
            data = self._pack(request.request, _REPLY, value, None)
        request.answered = True
        return data

    def _pack(self, request: int, flags: int, value: Payload, answered: Message | None) -> bytes:
        try:
            data = value.encode(self.terms) if answered is None else answered.encode_reply(value, self.terms)
        except (struct.error, TypeError, ValueError) as error:
            raise LocalProtocolError(f"{value} does not fit its layout: {error}") from error
        if len(data) > self._max_payload:
            raise LocalProtocolError(
                f"{value.name} has {len(data)} bytes, the limit here is {self._max_payload}"
            )
        return _HEADER.pack(request, flags | self._version, len(data)) + data

    def standing(self, message: Message, value: Payload) -> tuple[bytes, bytes]:
        """The bytes of a request, and of its answer if that is always the same and changes no terms: when it
        comes while this connection is idle, it can be answered without it.
        """
        return self._pack(message.request, 0, message, None), self._pack(
            message.request, _REPLY, value, message
        )

    def _check_open(self, side: Side, what: str) -> None:
        if self.side is not side:
            raise LocalProtocolError(f"this end of the socket for {self.channel.label} does not {what}")
        if self._closed:
            raise LocalProtocolError(f"the connection is closed: it cannot {what} any more")

    def close(self) -> None:
        """Close all descriptors that nobody took; what is received after this is thrown away."""
        self._closed = True
        self._framer.close()
        if self._event is not None:
            self._event.drop()
            self._event = None
