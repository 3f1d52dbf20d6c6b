# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bytes of messages made from offsets, without the code under test, and ends of sockets joined in memory."""

import os
import sys

from vhost.protocol import Channel, Connection, Event, Message, ProtocolFeature, Reply, Request, Side

EVERYTHING = (1 << 64) - 1
# All protocol features that can be negotiated at once: postcopy excludes memory slots.
POSTCOPY = (1 << 24) - 1 & ~ProtocolFeature.CONFIGURE_MEM_SLOTS & ~ProtocolFeature.XEN_MMAP
SLOTS = (1 << 24) - 1 & ~ProtocolFeature.PAGEFAULT & ~ProtocolFeature.XEN_MMAP

REPLY = 0x4
NEED_REPLY = 0x8


def raw(size: int, *places: tuple[int, int, int]) -> bytes:
    """Zeros, with integers of (offset, width, value) put in, in the byte order of the host."""
    data = bytearray(size)
    for offset, width, value in places:
        data[offset : offset + width] = value.to_bytes(width, sys.byteorder, signed=value < 0)
    return bytes(data)


def frame(request: int, payload: bytes = b"", flags: int = 0, version: int = 1) -> bytes:
    """A message, its header made from offsets too."""
    return raw(12, (0, 4, request), (4, 4, flags | version), (8, 4, len(payload))) + payload


def open_end(
    side: Side, channel: Channel = Channel.FRONTEND, protocol: int = SLOTS, **options: object
) -> Connection:
    """An end of a socket on which everything is offered and negotiated."""
    connection = Connection(channel, side, **options)  # type: ignore[arg-type]
    connection.features = connection.offered_features = EVERYTHING
    connection.protocol_features = connection.offered_protocol_features = protocol
    return connection


def responder(channel: Channel = Channel.FRONTEND, protocol: int = SLOTS, **options: object) -> Connection:
    return open_end(Side.RESPONDER, channel, protocol, **options)


def requester(channel: Channel = Channel.FRONTEND, protocol: int = SLOTS, **options: object) -> Connection:
    return open_end(Side.REQUESTER, channel, protocol, **options)


def spare_fds(count: int) -> list[int]:
    """Descriptors to give away."""
    return [os.dup(0) for _ in range(count)]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def events(connection: Connection) -> list[Event]:
    """What has arrived; the descriptors of all but the last are closed by then."""
    found = []
    while (event := connection.next_event()) is not None:
        found.append(event)
    return found


def one(connection: Connection, data: bytes, fds: list[int] | None = None) -> Event:
    """The single event that these bytes make."""
    connection.receive(data, fds or [])
    event = connection.next_event()
    assert event is not None
    return event


def deliver(
    sender: Connection, receiver: Connection, message: Message, fds: list[int] | None = None
) -> Request:
    """Send a message from one end to the other."""
    data, sent = sender.send(message, fds or [])
    event = one(receiver, data, sent)
    assert isinstance(event, Request), event
    return event


def answered(sender: Connection, output: tuple[bytes, list[int]] | None) -> Reply:
    """Take an answer in at the end that asked."""
    assert output is not None
    event = one(sender, *output)
    assert isinstance(event, Reply), event
    return event
