# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The host in the process: ARP, ping and DHCP, by frames as guests send them."""

import random
import struct
from ipaddress import IPv4Address, IPv4Interface

import pytest

from vhost.devices.net import Net
from vhost.devices.responder import Responder
from vhost.devices.switch import Switch

from .net_guest import Guest

GUEST = bytes.fromhex("525400123456")
HOST = IPv4Interface("10.0.2.1/24")
EVERYBODY = b"\xff" * 6
COOKIE = bytes.fromhex("63825363")


def total(data: bytes) -> int:
    """The sum that the Internet checksum is made of; 0xffff where the data hold a right one."""
    words = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    words += data[-1] << 8 if len(data) % 2 else 0
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    return words


def sealed(data: bytes, at: int) -> bytes:
    """`data` with its checksum at `at`."""
    return data[:at] + (total(data) ^ 0xFFFF).to_bytes(2) + data[at + 2 :]


def ipv4(protocol: int, source: str, target: str, payload: bytes, **more: int) -> bytes:
    fields = {"first": 0x45, "length": 20 + len(payload), "fragment": 0, **more}
    head = struct.pack(
        "!BBHHHBBH", fields["first"], 0, fields["length"], 1, fields["fragment"], 64, protocol, 0
    )
    head += IPv4Address(source).packed + IPv4Address(target).packed
    return sealed(head, 10) + payload


def ethernet(to: bytes, kind: int, payload: bytes) -> bytes:
    return to + GUEST + kind.to_bytes(2) + payload


def arp(target: str, operation: int = 1) -> bytes:
    packet = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + GUEST + IPv4Address("10.0.2.9").packed
    return ethernet(EVERYBODY, 0x0806, packet + bytes(6) + IPv4Address(target).packed + bytes(18))


def ping(data: bytes, kind: int = 8, target: str = "10.0.2.1") -> bytes:
    message = sealed(bytes((kind, 0, 0, 0, 1, 2, 0, 7)) + data, 2)
    return ethernet(host().mac, 0x0800, ipv4(1, "10.0.2.9", target, message))


def dhcp(kind: int, *options: tuple[int, bytes], client: bytes = GUEST, ciaddr: str = "0.0.0.0") -> bytes:
    message = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0xABCD, 0, 0x8000) + IPv4Address(ciaddr).packed
    message += bytes(12) + client.ljust(16, b"\0") + bytes(192) + COOKIE
    for code, value in ((53, bytes((kind,))), *options):
        message += bytes((code, len(value))) + value
    datagram = struct.pack("!HHHH", 68, 67, 9 + len(message), 0) + message + b"\xff"
    return ethernet(EVERYBODY, 0x0800, ipv4(17, "0.0.0.0", "255.255.255.255", datagram))


def answer(frame: bytes) -> tuple[int, IPv4Address, dict[int, bytes]]:
    """Kind, address and options of a DHCP answer."""
    assert total(frame[14:34]) == 0xFFFF
    message = frame[42:]
    assert message[:4] == b"\2\1\6\0"
    assert message[236:240] == COOKIE
    options, at = {}, 240
    while message[at] != 255:
        options[message[at]] = message[at + 2 : at + 2 + message[at + 1]]
        at += 2 + message[at + 1]
    return options[53][0], IPv4Address(message[16:20]), options


def host() -> Responder:
    return Responder(HOST)


def test_arp() -> None:
    station = host()
    (reply,) = station.respond(arp("10.0.2.1"))
    assert reply[:14] == GUEST + station.mac + b"\x08\x06"
    assert reply[14:22] == bytes.fromhex("0001080006040002")
    assert reply[22:42] == station.mac + HOST.ip.packed + GUEST + IPv4Address("10.0.2.9").packed
    assert station.respond(arp("10.0.2.2")) == []
    assert station.respond(arp("10.0.2.1", 2)) == []


@pytest.mark.parametrize("size", [0, 1, 56, 1472])
def test_ping(size: int) -> None:
    data = random.Random(size).randbytes(size)
    (reply,) = host().respond(ping(data))
    assert reply[:6] == GUEST
    assert total(reply[14:34]) == 0xFFFF
    assert reply[26:34] == HOST.ip.packed + IPv4Address("10.0.2.9").packed
    assert total(reply[34:]) == 0xFFFF
    assert (reply[34:36], reply[38:]) == (b"\0\0", bytes((1, 2, 0, 7)) + data)


def test_what_gets_no_answer() -> None:
    station = host()
    good = ping(b"hello")
    for bad in (
        ping(b"hello", kind=0),
        ping(b"hello", target="10.0.2.2"),
        good[:-1] + b"!",  # a checksum that is wrong
        bytes(6) + good[6:],  # for somebody else
        ethernet(station.mac, 0x86DD, bytes(60)),
        ethernet(station.mac, 0x0800, ipv4(1, "10.0.2.9", "10.0.2.1", good[34:], fragment=0x2000)),
        ethernet(station.mac, 0x0800, ipv4(1, "10.0.2.9", "10.0.2.1", good[34:], length=500)),
        ethernet(station.mac, 0x0800, ipv4(1, "10.0.2.9", "10.0.2.1", good[34:], first=0x4F)),
    ):
        assert station.respond(bad) == []
    assert len(station.respond(good)) == 1


def test_address_by_dhcp() -> None:
    station = host()
    kind, address, options = answer(*station.respond(dhcp(1)))
    assert (kind, address) == (2, IPv4Address("10.0.2.2"))
    assert (options[54], options[1], options[3]) == (
        HOST.ip.packed,
        bytes((255, 255, 255, 0)),
        HOST.ip.packed,
    )
    assert options[51] == (3600).to_bytes(4)
    request = dhcp(3, (50, address.packed), (54, HOST.ip.packed))
    assert answer(*station.respond(request))[:2] == (5, address)
    assert answer(*station.respond(dhcp(3, ciaddr=str(address))))[:2] == (5, address)  # renewed
    other = answer(*station.respond(dhcp(1, (50, address.packed), client=b"\2\0\0\0\0\1")))
    assert other[1] == IPv4Address("10.0.2.3")
    assert answer(*station.respond(dhcp(3, (50, address.packed), client=b"\2\0\0\0\0\1")))[0] == 6  # NAK
    station.respond(dhcp(7, (54, HOST.ip.packed), ciaddr=str(address)))  # released
    assert answer(*station.respond(dhcp(1, (50, address.packed), client=b"\2\0\0\0\0\2")))[1] == address


def test_an_address_that_was_declined_is_not_given_again() -> None:
    station = Responder(IPv4Interface("10.9.0.1/29"))
    for number in range(2, 7):
        assert answer(*station.respond(dhcp(1)))[1] == IPv4Address(f"10.9.0.{number}")
        station.respond(
            dhcp(4, (50, IPv4Address(f"10.9.0.{number}").packed), (54, IPv4Address("10.9.0.1").packed))
        )
    assert station.respond(dhcp(1)) == []


def test_a_server_that_was_not_chosen_is_silent() -> None:
    assert host().respond(dhcp(3, (50, IPv4Address("10.0.2.2").packed), (54, bytes(4)))) == []


def test_addresses_are_given_away_once_and_run_out() -> None:
    station = Responder(IPv4Interface("10.9.0.1/29"))
    given = set()
    for client in range(5):
        (frame,) = station.respond(dhcp(1, client=b"\2\0\0\0\0" + bytes((client,))))
        given.add(answer(frame)[1])
    assert given == {IPv4Address(f"10.9.0.{n}") for n in range(2, 7)}
    assert station.respond(dhcp(1, client=b"\2\0\0\0\0\x77")) == []


def test_damaged_frames_get_an_answer_or_none() -> None:
    station, rng = host(), random.Random(9)
    for whole in (arp("10.0.2.1"), ping(b"x" * 40), dhcp(1), dhcp(3, (50, bytes(4)))):
        for size in range(len(whole)):
            assert len(station.respond(whole[:size])) <= 1
        for _ in range(500):
            bad = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            assert len(station.respond(bytes(bad))) <= 1


@pytest.mark.usefixtures("unix_build")
@pytest.mark.parametrize("packed", [False, True])
def test_guests_on_a_switch_reach_it(packed: bool) -> None:
    station = host()
    first, second = [Guest(Net(port), packed=packed) for port in Switch(2, station=station).ports]
    for guest in (first, second):
        guest.offer(*[2048] * 8)
    first.send(arp("10.0.2.1"))
    (reply,) = first.frames()
    assert reply == station.respond(arp("10.0.2.1"))[0]
    assert second.frames() == [arp("10.0.2.1")]  # it was for all
    first.send(ping(b"hello"))
    assert first.frames() == station.respond(ping(b"hello"))
    assert second.frames() == []
    for guest in (first, second):
        guest.close()
        guest.net.close()
