# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Messages for certain devices: configuration space, network, crypto."""

from typing import Self

from vhost.errors import RemoteProtocolError
from vhost.protocol.features import ProtocolFeature as F
from vhost.protocol.message import Payload, message
from vhost.protocol.payloads import ConfigReply, CryptoSession, decode_config, encode_config
from vhost.protocol.terms import Gate, Terms

from .base import FrontendMessage

__all__ = (
    "GetConfig",
    "SetConfig",
    "CreateCryptoSession",
    "CloseCryptoSession",
    "SendRarp",
    "NetSetMtu",
)

_VIRTIO_NET_F_MTU = 1 << 3


@message(24, "GET_CONFIG", reply=ConfigReply, gate=F.CONFIG)
class GetConfig(FrontendMessage):
    """Asks for *size* bytes of the configuration space from *offset*."""

    offset: int
    size: int
    flags: int = 0

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        offset, flags, room = decode_config(data, cls.name)
        return cls(offset, len(room), flags)

    def encode(self, terms: Terms) -> bytes:
        return encode_config(self.offset, self.flags, bytes(self.size))

    def decode_reply(self, data: bytes, terms: Terms) -> Payload:
        value = ConfigReply.decode(data, terms)
        if data and not value.data and not terms.quirks.config_error_header:
            raise RemoteProtocolError(
                "the answer to GET_CONFIG has a head but no data; a failure has neither"
            )
        if value.data and (value.offset, len(value.data)) != (self.offset, self.size):
            raise RemoteProtocolError(f"GET_CONFIG asked for {self}, the answer is {value}")
        return value

    def code(self, value: Payload, fds: int) -> int:
        return int(isinstance(value, ConfigReply) and not value.data)

    @classmethod
    def failure(cls, code: int) -> Payload:
        return ConfigReply(0, 0, b"")


@message(25, "SET_CONFIG", gate=F.CONFIG)
class SetConfig(FrontendMessage):
    """Writes to the configuration space: *flags* 0 for a write of the guest, 1 for live migration."""

    offset: int
    flags: int
    data: bytes

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        offset, flags, content = decode_config(data, cls.name)
        if terms.quirks.set_config_flags and flags:
            flags -= 1
        return cls(offset, flags, content)

    def encode(self, terms: Terms) -> bytes:
        return encode_config(self.offset, self.flags, self.data)


@message(26, "CREATE_CRYPTO_SESSION", reply=CryptoSession, gate=F.CRYPTO_SESSION)
class CreateCryptoSession(FrontendMessage):
    """Opens a crypto session, described by a C structure of the hosts' ABI."""

    data: bytes

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(data)

    def encode(self, terms: Terms) -> bytes:
        return self.data

    def code(self, value: Payload, fds: int) -> int:
        return int(not isinstance(value, CryptoSession) or value.session_id < 0)


@message(27, "CLOSE_CRYPTO_SESSION", "Q", gate=F.CRYPTO_SESSION)
class CloseCryptoSession(FrontendMessage):
    """Closes a crypto session."""

    session_id: int


@message(19, "SEND_RARP", "6s2x", gate=Gate(offered_protocol=int(F.RARP)))
class SendRarp(FrontendMessage):
    """Asks a network back-end to announce this MAC address after migration."""

    mac: bytes


@message(20, "NET_SET_MTU", "Q", gate=Gate(offered_protocol=int(F.MTU), virtio=_VIRTIO_NET_F_MTU))
class NetSetMtu(FrontendMessage):
    """Tells a network back-end the MTU."""

    mtu: int
