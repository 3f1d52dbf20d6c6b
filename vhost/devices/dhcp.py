# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A DHCP server for one network (RFC 2131): messages in, messages out."""

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from itertools import islice
from threading import Lock
from typing import Final

__all__ = ("Answer", "DhcpServer")

# op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname and file, magic
_MESSAGE: Final = struct.Struct("!BBBBIHH4s4s4s4s16s192xI")
_MAGIC: Final = 0x63825363
_BROADCAST: Final = 0x8000
_NOWHERE: Final = bytes(4)

_DISCOVER, _OFFER, _REQUEST, _DECLINE, _ACK, _NAK, _RELEASE, _INFORM = range(1, 9)
_PAD, _MASK, _ROUTER, _WANTED, _LEASE, _KIND, _SERVER, _END = 0, 1, 3, 50, 51, 53, 54, 255

# Addresses that are given away at most, whatever the network holds.
_POOL: Final = 4096
# Seconds for which an address is kept for the client that it was offered to.
_OFFERED: Final = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """A message for a client.

    :ivar mac: the client.
    :ivar address: where it can be reached; None: only as everybody.
    """

    message: bytes
    mac: bytes
    address: IPv4Address | None


class DhcpServer:
    """The server at `address`; its clients get the other addresses of the network.

    Safe to share between threads.

    :param lease: seconds for which a client has its address.
    :param now: a clock in seconds.
    """

    def __init__(
        self, address: IPv4Interface, *, lease: int = 3600, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._server = address.ip
        self._network = address.network
        self._lease = lease
        self._now = now
        self._lock = Lock()
        self._pool = [host for host in islice(self._network.hosts(), _POOL) if host != self._server]
        self._leases: dict[bytes, tuple[IPv4Address, float]] = {}  # by client: its address, and until when

    def answer(self, message: bytes) -> Answer | None:
        """The answer to a client's message, None: there is none to give."""
        if len(message) < _MESSAGE.size:
            return None
        op, htype, hlen, _, xid, _, flags, ciaddr, _, _, giaddr, chaddr, magic = _MESSAGE.unpack_from(message)
        if (op, htype, hlen, giaddr, magic) != (1, 1, 6, _NOWHERE, _MAGIC):
            return None
        options = _options(message[_MESSAGE.size :])
        kind, mac = options.get(_KIND, b"\0"), chaddr[:6]
        wanted = options.get(_WANTED, b"" if ciaddr == _NOWHERE else ciaddr)
        with self._lock:
            verdict, address = self._decide(kind[0], mac, wanted, options.get(_SERVER))
        if verdict is None:
            return None
        more = b""
        if verdict != _NAK:
            more = _option(_MASK, self._network.netmask.packed) + _option(_ROUTER, self._server.packed)
            if address is not None:
                more += _option(_LEASE, self._lease.to_bytes(4))
        packed = _NOWHERE if address is None else address.packed
        head = _MESSAGE.pack(
            2, 1, 6, 0, xid, 0, flags, ciaddr, packed, self._server.packed, _NOWHERE, chaddr, _MAGIC
        )
        body = _option(_KIND, bytes((verdict,))) + _option(_SERVER, self._server.packed) + more
        reachable = address or (IPv4Address(ciaddr) if kind[0] == _INFORM else None)
        if verdict == _NAK or flags & _BROADCAST:
            reachable = None
        return Answer((head + body + bytes((_END,))).ljust(300, b"\0"), mac, reachable)

    def _decide(
        self, kind: int, mac: bytes, wanted: bytes, server: bytes | None
    ) -> tuple[int | None, IPv4Address | None]:
        # What to answer, and the address to give.
        if kind == _INFORM:
            return _ACK, None
        if server is not None and server != self._server.packed:
            return None, None  # it has chosen another server
        if kind == _DISCOVER:
            address = self._find(mac, wanted)
            if address is None:
                return None, None
            return _OFFER, self._give(mac, address, min(_OFFERED, self._lease))
        if kind == _REQUEST:
            address = self._find(mac, wanted)
            if address is None or address.packed != wanted:
                return _NAK, None
            return _ACK, self._give(mac, address, self._lease)
        if kind in (_RELEASE, _DECLINE) and mac in self._leases:
            address, _ = self._leases.pop(mac)
            if kind == _DECLINE:
                # Somebody else uses it, who is not known: nobody gets it for the time of a lease.
                self._leases[address.packed] = address, self._now() + self._lease
        return None, None

    def _give(self, mac: bytes, address: IPv4Address, seconds: int) -> IPv4Address:
        # An offer takes nothing from a lease that runs.
        end = max(self._now() + seconds, self._leases[mac][1] if mac in self._leases else 0)
        self._leases[mac] = address, end
        return address

    def _find(self, mac: bytes, wanted: bytes) -> IPv4Address | None:
        # The client's own address, or the one it wants, or the first that is free.
        now = self._now()
        if mac in self._leases:
            return self._leases[mac][0]
        for client in [client for client, (_, end) in self._leases.items() if end < now]:
            del self._leases[client]
        taken = {address for address, _ in self._leases.values()}
        free = [address for address in self._pool if address not in taken]
        return next((address for address in free if address.packed == wanted), free[0] if free else None)


def _option(code: int, value: bytes) -> bytes:
    return bytes((code, len(value))) + value


def _options(data: bytes) -> dict[int, bytes]:
    # By code; what is cut off is left out, and so are options that are empty.
    found, at = {}, 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(data):
            break
        value = data[at + 2 : at + 2 + data[at + 1]]
        if value and len(value) == data[at + 1]:
            found[data[at]] = value
        at += 2 + data[at + 1]
    return found
