# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What all messages have in common: layout, descriptors, reply rule, gate, and the registry by code.

A message is a frozen value whose class is a row of the specification's tables; :func:`message` turns the
declaration into that class. Nothing here knows a single message.
"""

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Self, TypeVar, dataclass_transform

from vhost.errors import RemoteProtocolError

from .features import GpuProtocolFeature, ProtocolFeature
from .header import Channel
from .terms import Gate, Terms

__all__ = (
    "ReplyRule",
    "Payload",
    "Empty",
    "U64",
    "Message",
    "REGISTRY",
    "message",
    "payload",
)


class ReplyRule(enum.Enum):
    """When a message is answered, and with what."""

    NEVER = enum.auto()
    ACK = enum.auto()  #: with a u64, 0 for success, if REPLY_ACK is negotiated and NEED_REPLY set
    STATUS = enum.auto()  #: always, with such a u64
    VALUE = enum.auto()  #: always, with a value of the message's reply_type


_HEX = ("addr", "iova", "offset", "features", "descriptor", "used", "available", "log", "value", "size")


def _show(name: str, value: object) -> str:
    if isinstance(value, bytes):
        return f"{name}={value.hex()}" if len(value) <= 16 else f"{name}=<{len(value)} bytes>"
    if isinstance(value, bool):
        return f"{name}={value:d}"
    if isinstance(value, int):
        return f"{name}={value:#x}" if name.endswith(_HEX) else f"{name}={value}"
    if type(value) is tuple:
        return f"{name}=[{', '.join(map(str, value))}]"
    return f"{name}={value}"


class Payload:
    """A frozen value with a layout: the payload of a request or of a reply.

    :cvar layout: the fields in wire order.
    """

    __slots__ = ()
    layout: ClassVar[struct.Struct] = struct.Struct("=")
    name: ClassVar[str] = ""
    _fields: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        """The value that *data* holds, all of it.

        :raises RemoteProtocolError: size or content is not what the layout allows.
        """
        if len(data) != cls.layout.size:
            raise cls.wrong_size(data, str(cls.layout.size))
        return cls(*cls.layout.unpack(data))

    def encode(self, terms: Terms) -> bytes:
        """The bytes of this value.

        :raises struct.error: a field does not fit its place.
        """
        return self.layout.pack(*[getattr(self, name) for name in self._fields])

    @classmethod
    def wrong_size(cls, data: bytes, wanted: str) -> RemoteProtocolError:
        """The error to raise when *data* has the wrong size."""
        return RemoteProtocolError(f"{cls.name} has a payload of {len(data)} bytes, not {wanted}")

    def _values(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in self._fields])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__qualname__}({values})"

    def __str__(self) -> str:
        return " ".join((self.name, *(_show(name, getattr(self, name)) for name in self._fields)))


_P = TypeVar("_P", bound=Payload)


@dataclass_transform(frozen_default=True)
def payload(layout: str = "") -> Callable[[type[_P]], type[_P]]:
    """Class decorator: a frozen, slotted dataclass with a layout, its fields in wire order."""

    def build(cls: type[_P]) -> type[_P]:
        # What can be common to all is in Payload, which takes much less time to load.
        built = dataclass(frozen=True, slots=True, repr=False, eq=False)(cls)
        built.layout = struct.Struct("=" + layout)
        built._fields = tuple(entry.name for entry in fields(built))  # type: ignore[arg-type]
        built.name = built.name or built.__name__
        return built

    return build


_U64 = struct.Struct("=Q")


@payload()
class Empty(Payload):
    """No payload: the reply that carries a descriptor only, or the failure of a message with a value."""


@payload("Q")
class U64(Payload):
    """A number, a set of features, or a status."""

    value: int

    def encode(self, terms: Terms) -> bytes:
        return _U64.pack(self.value)


class Message(Payload):
    """A request of one of the three channels.

    :cvar request: code in the header.
    :cvar name: name in the specification.
    :cvar fds: how many descriptors come along, least and most.
    :cvar reply: when it is answered; *reply_type* with what, *reply_fds* with how many descriptors.
    :cvar gate: what must be negotiated first.
    """

    __slots__ = ()
    channel: ClassVar[Channel]
    request: ClassVar[int]
    fds: ClassVar[tuple[int, int]] = (0, 0)
    reply: ClassVar[ReplyRule] = ReplyRule.ACK
    reply_type: ClassVar[type[Payload]] = U64
    reply_fds: ClassVar[tuple[int, int]] = (0, 0)
    gate: ClassVar[Gate | None] = None
    asks_ack: ClassVar[bool] = True  # whether to set NEED_REPLY where it means something

    def fd_range(self) -> tuple[int, int]:
        """Descriptors this very message needs and takes, least and most."""
        return self.fds

    def stray_fds(self, terms: Terms) -> int:
        """Descriptors beyond these that a peer may add by mistake; they are closed."""
        return 0

    @classmethod
    def rule_of_kind(cls, terms: Terms) -> ReplyRule:
        """The reply rule of such a message; of one that cannot be read, that is all there is to go by."""
        return cls.reply

    def rule(self, terms: Terms) -> ReplyRule:
        """The reply rule of this very message."""
        return self.rule_of_kind(terms)

    def settle(self, terms: Terms) -> None:
        """Put into *terms* what this message, once sent or received, changes there."""

    def encode_reply(self, value: Payload, terms: Terms) -> bytes:
        """The bytes of an answer to this message."""
        return value.encode(terms)

    def decode_reply(self, data: bytes, terms: Terms) -> Payload:
        """The answer in *data*; :class:`Empty` where a value was due says that the peer failed.

        :raises RemoteProtocolError: it cannot be an answer to this message.
        """
        if not data and self.reply_type is not Empty:
            return Empty()
        return self.reply_type.decode(data, terms)

    def settle_reply(self, value: Payload, terms: Terms) -> None:
        """Put into *terms* what the answer *value*, once sent or received, changes there."""

    def reply_fd_range(self, value: Payload) -> tuple[int, int]:
        """Descriptors that the answer *value* needs and takes, if it does not tell a failure."""
        return self.reply_fds

    def code(self, value: Payload, fds: int) -> int:
        """What an answer means: 0 for success, else the failure the peer tells.

        :param fds: number of descriptors with the answer.
        """
        return int(type(value) is not self.reply_type)

    @classmethod
    def failure(cls, code: int) -> Payload:
        """The answer that tells failure *code*, for a message that is answered with a value."""
        return Empty()


#: Every message class, by channel and code.
REGISTRY: dict[Channel, dict[int, type[Message]]] = {channel: {} for channel in Channel}

_M = TypeVar("_M", bound=Message)


@dataclass_transform(frozen_default=True)
def message(
    request: int,
    name: str,
    layout: str = "",
    *,
    fds: int | tuple[int, int] = 0,
    reply: ReplyRule | type[Payload] | None = None,
    reply_fds: int | tuple[int, int] = 0,
    gate: ProtocolFeature | GpuProtocolFeature | Gate | None = None,
) -> Callable[[type[_M]], type[_M]]:
    """Class decorator: one row of a message table.

    :param request: code in the header; *name* as in the specification.
    :param layout: :mod:`struct` codes of the fields, without byte order; ``x`` is padding.
    :param fds: descriptors, exactly or least and most; *reply_fds* those of the answer.
    :param reply: the rule, or the type of value it is always answered with.
    :param gate: the feature it needs, or a whole :class:`Gate`.
    """

    def build(cls: type[_M]) -> type[_M]:
        built = payload(layout)(cls)
        built.request, built.name = request, name
        built.fds = (fds, fds) if isinstance(fds, int) else fds
        built.reply_fds = (reply_fds, reply_fds) if isinstance(reply_fds, int) else reply_fds
        if isinstance(reply, ReplyRule):
            built.reply = reply
        elif reply is not None:
            built.reply, built.reply_type = ReplyRule.VALUE, reply
        if gate is not None:
            built.gate = gate if isinstance(gate, Gate) else Gate.of(gate)
        REGISTRY[built.channel][request] = built
        return built

    return build
