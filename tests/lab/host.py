# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A small host of IPv4 behind our frontend, for a network card of others: ARP, DHCP, and a TCP connection.

Rings lose nothing, so it repeats nothing; what comes out of order it leaves to the sender to repeat.
"""

import struct
from collections.abc import Callable
from ipaddress import IPv4Address

from vhost.devices.responder import checksum
from vhost.frontend import Frontend
from vhost.virtio.net import NetHeader

__all__ = ("Host", "Tcp")

RECEIVE, SEND = 0, 1  # queues
BUFFERS, ROOM = 64, 2048
HEADER = len(NetHeader().pack())
EVERYBODY, NOWHERE = b"\xff" * 6, bytes(4)
IPV4, ARP = b"\x08\x00", b"\x08\x06"
TCP, UDP = 6, 17
SYN_MSS = b"\x02\x04\x05\xb4"  # segments of 1460 bytes fit
SEGMENT = 1460
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
WINDOW = 65535

_DHCP = struct.Struct("!BBBBIHH4s4s4s4s16s192xI")
_MAGIC = 0x63825363
DISCOVER, OFFER, REQUEST, ACKNOWLEDGED = 1, 2, 3, 5


class Host:
    """A host with one network card.

    :param mac: its address.
    """

    def __init__(self, frontend: Frontend, mac: bytes) -> None:
        self._send_queue, self._receive_queue = frontend.queue(SEND), frontend.queue(RECEIVE)
        self.mac, self.address = mac, NOWHERE
        for _ in range(BUFFERS):
            self._receive_queue.submit(writable=ROOM)

    def send(self, mac: bytes, kind: bytes, data: bytes) -> None:
        """Sends a frame."""
        frame = NetHeader().pack() + mac + self.mac + kind + data
        self._send_queue.wait(self._send_queue.submit(frame))

    def receive(self, kind: bytes, wanted: Callable[[bytes], bool]) -> bytes:
        """Waits for a frame of a kind; returns what it holds. Others are ignored."""
        while True:
            packet = self._receive_queue.wait().data
            self._receive_queue.submit(writable=ROOM)
            assert NetHeader.unpack(packet).num_buffers == 1, packet.hex()
            frame = packet[HEADER:]
            if frame[12:14] == kind and wanted(frame[14:]):
                return frame[14:]

    def send_packet(self, mac: bytes, to: bytes, protocol: int, data: bytes) -> None:
        """Sends a packet of IPv4."""
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 0, 0, 64, protocol, 0) + self.address + to
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        self.send(mac, IPV4, head + data)

    def receive_packet(self, protocol: int, wanted: Callable[[bytes], bool]) -> bytes:
        """Waits for a packet of a protocol; returns what it holds."""

        def ours(packet: bytes) -> bool:
            assert checksum(packet[:20]) == 0, packet.hex()
            return packet[9] == protocol and wanted(content(packet))

        return content(self.receive(IPV4, ours))

    def resolve(self, address: IPv4Address) -> bytes:
        """Asks who has an address."""
        head = b"\x00\x01" + IPV4 + b"\x06\x04"
        self.send(EVERYBODY, ARP, head + b"\x00\x01" + self.mac + self.address + bytes(6) + address.packed)
        answer = self.receive(ARP, lambda text: text[6:8] == b"\x00\x02" and text[14:18] == address.packed)
        return answer[8:14]

    def lease(self) -> dict[int, bytes]:
        """Gets an address by DHCP. Returns the options that came with it."""
        offered, options = self._dhcp(DISCOVER)
        address, acknowledged = self._dhcp(REQUEST, b"\x32\x04" + offered + b"\x36\x04" + options[54])
        assert (options[53], acknowledged[53]) == (bytes([OFFER]), bytes([ACKNOWLEDGED]))
        self.address = address
        return acknowledged

    def _dhcp(self, kind: int, options: bytes = b"") -> tuple[bytes, dict[int, bytes]]:
        number = 0x1234_0000 + kind
        fields = 1, 1, 6, 0, number, 0, 0, NOWHERE, NOWHERE, NOWHERE, NOWHERE, self.mac
        message = _DHCP.pack(*fields, _MAGIC) + bytes([53, 1, kind]) + options + b"\xff"
        message = message.ljust(300, b"\0")
        datagram = struct.pack("!HHHH", 68, 67, 8 + len(message), 0) + message
        self.send_packet(EVERYBODY, b"\xff" * 4, UDP, datagram)
        ports = struct.pack("!HH", 67, 68)
        answer = self.receive_packet(UDP, lambda text: text[:4] == ports and len(text) > 8 + _DHCP.size)[8:]
        found = _DHCP.unpack_from(answer)
        assert (found[0], found[4], found[11][:6], found[12]) == (2, number, self.mac, _MAGIC), answer.hex()
        known, rest = {}, answer[_DHCP.size :]
        while rest and rest[0] != 255:
            if rest[0]:
                known[rest[0]] = rest[2 : 2 + rest[1]]
            rest = rest[2 + rest[1] :] if rest[0] else rest[1:]
        return found[8], known


class Tcp:
    """A connection that a host has made.

    :param mac: where packets to ``address`` go.
    """

    def __init__(
        self, host: Host, mac: bytes, address: IPv4Address, port: int, our_port: int = 40000
    ) -> None:
        self._host, self._mac, self._to = host, mac, address.packed
        self._ports = our_port, port
        self._next, self._expected = 1000, 0
        self._data = bytearray()
        self._ended = False
        self._send(SYN, options=SYN_MSS)
        self._next += 1
        while not self._expected:
            self._receive()

    def send(self, data: bytes) -> None:
        """Sends all of it, each segment when the one before has arrived."""
        for start in range(0, len(data), SEGMENT):
            piece = data[start : start + SEGMENT]
            self._send(ACK | PSH, piece)
            self._next += len(piece)
            while self._acknowledged != self._next:
                self._receive()

    def receive(self, size: int) -> bytes:
        """Waits for so many bytes."""
        while len(self._data) < size:
            assert not self._ended, f"the connection has ended after {len(self._data)} of {size} bytes"
            self._receive()
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

    def finish(self) -> None:
        """Waits for the other end to hang up, and does so too."""
        while not self._ended:
            self._receive()
        self._send(FIN | ACK)
        self._next += 1
        while self._acknowledged != self._next:
            self._receive()

    def _send(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        size = 5 + len(options) // 4
        numbers = self._next, self._expected, size << 4, flags, WINDOW, 0, 0
        segment = struct.pack("!HHIIBBHHH", *self._ports, *numbers) + options + data
        whole = self._host.address + self._to + struct.pack("!HH", TCP, len(segment)) + segment
        segment = segment[:16] + struct.pack("!H", checksum(whole)) + segment[18:]
        self._host.send_packet(self._mac, self._to, TCP, segment)

    def _receive(self) -> None:
        # The next segment: what it brings in order is taken and acknowledged.
        ports = struct.pack("!HH", *reversed(self._ports))
        segment = self._host.receive_packet(TCP, lambda text: text[:4] == ports)
        number, self._acknowledged, size, flags = struct.unpack_from("!IIBB", segment, 4)
        assert not flags & RST, "the connection was reset"
        data = segment[(size >> 4) * 4 :]
        if flags & SYN:
            self._expected = number + 1
        elif number == self._expected:
            self._data += data
            self._ended |= bool(flags & FIN)
            self._expected += len(data) + bool(flags & FIN)
        if data or flags & (SYN | FIN):
            self._send(ACK)


def content(packet: bytes) -> bytes:
    # What a packet of IPv4 holds: without padding of its frame.
    return packet[(packet[0] & 15) * 4 : struct.unpack_from("!H", packet, 2)[0]]
