# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A host that needs no privileges: answers ARP (RFC 826) and ping (RFC 792), gives addresses by DHCP.

Frames in, frames out. Whatever is malformed, or for somebody else, is answered by silence.
"""

import struct
from ipaddress import IPv4Address, IPv4Interface
from typing import Final

from vhost.devices.dhcp import DhcpServer

__all__ = ("Responder",)

_ETHERNET: Final = struct.Struct("!6s6sH")
_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_UDP: Final = struct.Struct("!HHHH")

_TYPE_IPV4, _TYPE_ARP = 0x0800, 0x0806
_ICMP, _UDP_PROTOCOL = 1, 17
_ECHO_REPLY, _ECHO_REQUEST = 0, 8
_DHCP_SERVER, _DHCP_CLIENT = 67, 68
_MORE_FRAGMENTS_OR_OFFSET = 0x3FFF
_BROADCAST_MAC: Final = b"\xff" * 6
_EVERYBODY: Final = IPv4Address("255.255.255.255")


class Responder:
    """The host `address`, a :class:`vhost.devices.switch.Station`.

    :param address: its address and the length of the network's prefix; guests get the other addresses.
    :param mac: its Ethernet address.
    """

    def __init__(self, address: IPv4Interface, *, mac: bytes = bytes.fromhex("020000000001")) -> None:
        self.mac = mac
        self._address = address.ip
        self._dhcp = DhcpServer(address)

    def respond(self, frame: bytes) -> list[bytes]:
        """The answers to a frame, which go to its sender."""
        if len(frame) < _ETHERNET.size:
            return []
        to, source, kind = _ETHERNET.unpack_from(frame)
        if to not in (self.mac, _BROADCAST_MAC):
            return []
        payload = frame[_ETHERNET.size :]
        if kind == _TYPE_ARP:
            return self._arp(payload)
        if kind == _TYPE_IPV4:
            return self._ipv4(source, payload)
        return []

    def _arp(self, packet: bytes) -> list[bytes]:
        if len(packet) < _ARP.size:
            return []
        *kind, operation, mac, address, _, target = _ARP.unpack_from(packet)
        if kind != [1, _TYPE_IPV4, 6, 4] or operation != 1 or target != self._address.packed:
            return []
        answer = _ARP.pack(1, _TYPE_IPV4, 6, 4, 2, self.mac, self._address.packed, mac, address)
        return [_ETHERNET.pack(mac, self.mac, _TYPE_ARP) + answer]

    def _ipv4(self, mac: bytes, packet: bytes) -> list[bytes]:
        if len(packet) < _IPV4.size:
            return []
        version, _, total, _, fragment, _, protocol, _, source, target = _IPV4.unpack_from(packet)
        size = (version & 15) * 4
        if version >> 4 != 4 or not _IPV4.size <= size <= total <= len(packet) or checksum(packet[:size]):
            return []
        if fragment & _MORE_FRAGMENTS_OR_OFFSET:
            return []
        data = packet[size:total]
        if protocol == _ICMP and target == self._address.packed:
            return self._echo(mac, IPv4Address(source), data)
        if protocol == _UDP_PROTOCOL and target in (self._address.packed, _EVERYBODY.packed):
            return self._udp(data)
        return []

    def _echo(self, mac: bytes, source: IPv4Address, message: bytes) -> list[bytes]:
        if len(message) < 8 or message[:2] != bytes((_ECHO_REQUEST, 0)) or checksum(message):
            return []
        rest = message[4:]
        head = bytes((_ECHO_REPLY, 0))
        answer = head + checksum(head + b"\0\0" + rest).to_bytes(2, "big") + rest
        return [self._packet(mac, source, _ICMP, answer)]

    def _udp(self, datagram: bytes) -> list[bytes]:
        if len(datagram) < _UDP.size:
            return []
        from_port, to_port, length, _ = _UDP.unpack_from(datagram)
        if (from_port, to_port) != (_DHCP_CLIENT, _DHCP_SERVER) or not _UDP.size <= length <= len(datagram):
            return []
        answer = self._dhcp.answer(datagram[_UDP.size : length])
        if answer is None:
            return []
        # No checksum of UDP (0): that of IP and of the link have to do.
        head = _UDP.pack(_DHCP_SERVER, _DHCP_CLIENT, _UDP.size + len(answer.message), 0)
        mac, address = (answer.mac, answer.address) if answer.address else (_BROADCAST_MAC, _EVERYBODY)
        return [self._packet(mac, address, _UDP_PROTOCOL, head + answer.message)]

    def _packet(self, mac: bytes, to: IPv4Address, protocol: int, data: bytes) -> bytes:
        fields = 0x45, 0, _IPV4.size + len(data), 0, 0, 64, protocol
        head = _IPV4.pack(*fields, 0, self._address.packed, to.packed)
        head = _IPV4.pack(*fields, checksum(head), self._address.packed, to.packed)
        return _ETHERNET.pack(mac, self.mac, _TYPE_IPV4) + head + data


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that contains a right one."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
