# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A TAP interface as the network of a guest; needs the right to make one."""

import ctypes
import fcntl
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from vhost.devices.net import Net
from vhost.devices.tap import Tap
from vhost.errors import DeviceError
from vhost.virtio.net import Gso, HeaderFlag, NetFeature, NetHeader

from .net_guest import PLAIN, Guest, Received
from .test_net_responder import total

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
SIOCSIFMTU = 0x8922
TUNATTACHFILTER = 0x401054D5
LEGACY = int(NetFeature.MRG_RXBUF)
GUEST, HOST = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b"


def may_make_taps() -> bool:
    with suppress(OSError):
        Tap("vhosttest%d").close()
        return True
    return False


pytestmark = [
    pytest.mark.usefixtures("unix_build"),
    pytest.mark.skipif(not may_make_taps(), reason="needs /dev/net/tun and CAP_NET_ADMIN"),
]


def frame(size: int, to: bytes = b"\xff" * 6, source: bytes = GUEST, seed: int = 1) -> bytes:
    return to + source + b"\x88\xb5" + random.Random(seed).randbytes(size - 14)


class Wire:
    """The host's side of an interface: brings it up, sends to it and receives what comes out of it.

    What the host says by itself, about IPv6 and at any time, does not get to the guest.
    """

    def __init__(self, tap: Tap, mtu: int = 1500) -> None:
        name = tap.name
        _only(tap, 0x88B5, 0x0800)
        with socket.socket() as control:
            fcntl.ioctl(control, SIOCSIFMTU, struct.pack("16si", name.encode(), mtu))
            request = struct.pack("16sh14x", name.encode(), 0)
            (flags,) = struct.unpack_from("h", fcntl.ioctl(control, SIOCGIFFLAGS, request), 16)
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", name.encode(), flags | IFF_UP))
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        self.socket.bind((name, 0x88B5))
        self.socket.settimeout(30)

    def receive(self) -> bytes:
        """The next frame from the guest; what this side has sent does not count."""
        while True:
            data, address = self.socket.recvfrom(70000)
            if address[2] != socket.PACKET_OUTGOING:
                return data


def _only(tap: Tap, *types: int) -> None:
    # Load the type at byte 12, jump to the last instruction if it is one of these, return none or all bytes.
    program = [(0x28, 0, 0, 12), *[(0x15, len(types) - n, 0, kind) for n, kind in enumerate(types)]]
    program += [(6, 0, 0, 0), (6, 0, 0, 0xFFFFFFFF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    fcntl.ioctl(tap._fds[0], TUNATTACHFILTER, struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))


@pytest.fixture
def pair() -> Iterator[Callable[..., tuple[Guest, Wire]]]:
    """Makes a guest and the other end of its cable."""
    made: list[tuple[Guest, Wire]] = []

    def make(
        *, features: int = PLAIN, packed: bool = False, mtu: int = 1500, big_endian: bool = False
    ) -> tuple[Guest, Wire]:
        tap = Tap("vhosttest%d")
        guest = Guest(Net(tap), packed=packed, features=features, big_endian=big_endian)
        made.append((guest, Wire(tap, mtu)))
        return made[-1]

    yield make
    for guest, wire in made:
        guest.close()
        guest.net.close()
        wire.socket.close()


def wait_for(guest: Guest, count: int) -> list[bytes]:
    """The next frames that the guest receives."""
    got: list[bytes] = []
    end = time.monotonic() + 30
    while len(got) < count:
        assert time.monotonic() < end
        got += guest.frames()
    return got


@pytest.mark.parametrize("features", [PLAIN, 0, 1 << 32])
@pytest.mark.parametrize("packed", [False, True])
def test_frames_both_ways(pair: Callable[..., tuple[Guest, Wire]], features: int, packed: bool) -> None:
    guest, wire = pair(features=features, packed=packed)
    guest.offer(*[2048] * 100)
    for turn in range(20):
        guest.send(frame(60 + 70 * turn, seed=turn))
        assert wire.receive() == frame(60 + 70 * turn, seed=turn)
        wire.socket.send(frame(1500 - 70 * turn, GUEST, HOST, turn))
    assert wait_for(guest, 20) == [frame(1500 - 70 * turn, GUEST, HOST, turn) for turn in range(20)]


def test_a_frame_over_several_buffers(pair: Callable[..., tuple[Guest, Wire]]) -> None:
    guest, wire = pair()
    guest.offer(*[700] * 128)
    wire.socket.send(frame(1500, GUEST, HOST))
    while not (got := guest.received()):
        pass
    assert got[0].frame == frame(1500, GUEST, HOST)
    assert got[0].header.num_buffers == 3
    assert got[0].lengths == [700, 700, 112]


def test_a_few_buffers_are_enough_for_what_fits(pair: Callable[..., tuple[Guest, Wire]]) -> None:
    guest, wire = pair(mtu=9000)
    guest.offer(2000, 2000)
    wire.socket.send(frame(60, GUEST, HOST))
    assert wait_for(guest, 1) == [frame(60, GUEST, HOST)]
    wire.socket.send(frame(5000, GUEST, HOST))  # which waits for more room
    wire.socket.send(frame(61, GUEST, HOST))
    time.sleep(0.1)
    assert guest.frames() == []
    guest.offer(2000)
    assert guest.frames() == []
    guest.offer(*[2000] * 4)
    assert wait_for(guest, 2) == [frame(5000, GUEST, HOST), frame(61, GUEST, HOST)]
    assert guest.counts(0).dropped == 0


def test_a_disabled_queue_does_not_wake_its_worker(pair: Callable[..., tuple[Guest, Wire]]) -> None:
    guest, wire = pair()
    guest.offer(2000, 2000, 2000)
    guest.net.set_enabled(0, False)
    wire.socket.send(frame(60, GUEST, HOST))
    assert guest.frames() == []
    assert guest.event_fd(0) == -1
    guest.net.set_enabled(0, True)
    assert select.select([guest.event_fd(0)], [], [], 30)[0]
    assert wait_for(guest, 1) == [frame(60, GUEST, HOST)]


def test_ecn_without_segments(caplog: pytest.LogCaptureFixture) -> None:
    guest = Guest(Net(Tap("vhosttest%d")), features=PLAIN | NetFeature.GUEST_CSUM | NetFeature.GUEST_ECN)
    guest.close()
    guest.net.close()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_frame_that_does_not_fit_is_dropped(pair: Callable[..., tuple[Guest, Wire]]) -> None:
    guest, wire = pair(features=1 << 32)
    guest.careless = True
    guest.offer(*[200] * 100)
    wire.socket.send(frame(1000, GUEST, HOST))
    wire.socket.send(frame(100, GUEST, HOST))
    assert wait_for(guest, 1) == [frame(100, GUEST, HOST)]
    assert guest.counts(0).dropped >= 1


def test_headers_that_the_kernel_refuses_are_counted(pair: Callable[..., tuple[Guest, Wire]]) -> None:
    guest, wire = pair()
    guest.send(frame(64), header=NetHeader(0, 0x7F, 0, 100))
    guest.send(frame(64), header=NetHeader(HeaderFlag.NEEDS_CSUM, 0, 0, 0, 60, 60))
    guest.send_raw(bytes(12))
    guest.send(frame(70))
    assert wire.receive() == frame(70)
    assert guest.counts(1).malformed == 3


def test_an_interface_that_is_down_drops() -> None:
    guest = Guest(Net(Tap("vhosttest%d")))
    guest.send(frame(64))
    assert guest.counts(1).dropped == 1
    guest.close()
    guest.net.close()


def test_offloads_on_offer() -> None:
    net = Net(Tap("vhosttest%d"))
    wanted = NetFeature.CSUM | NetFeature.GUEST_CSUM | NetFeature.HOST_TSO4 | NetFeature.GUEST_TSO4
    assert wanted in NetFeature(net.features)
    net.close()


@pytest.mark.parametrize(("features", "big_endian"), [(PLAIN, False), (LEGACY, False), (LEGACY, True)])
@pytest.mark.parametrize("rooms", [[4096] * 120, [40, 1000, 7, *[1000] * 100]])
@pytest.mark.parametrize("accepts", [False, True])
def test_segments_and_checksums_only_for_drivers_that_accept_them(
    pair: Callable[..., tuple[Guest, Wire]],
    accepts: bool,
    rooms: list[int],
    features: int,
    big_endian: bool,
) -> None:
    more = NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 if accepts else NetFeature(0)
    guest, _ = pair(features=features | more, big_endian=big_endian)
    guest.offer(*rooms)
    # The host sends a large TCP segment through its own stack, which leaves the work to us if it may.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((guest.net._network.name, 0))  # type: ignore[attr-defined]
        sender.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        size = 4000
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + size, 1, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
        pseudo = total(ip[12:] + struct.pack("!HH", 6, 20 + size))
        tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x10, 1000, pseudo, 0)
        head = struct.pack("=BBHHHH", HeaderFlag.NEEDS_CSUM, Gso.TCPV4, 54, 1000, 34, 16)
        sender.send(head + GUEST + HOST + b"\x08\0" + ip + tcp + bytes(size))
    got: list[Received] = []
    end = time.monotonic() + 30
    while sum(len(each.frame) - 54 for each in got) < size:
        assert time.monotonic() < end
        got += guest.received()
    if accepts:
        (whole,) = got
        assert (whole.header.flags, whole.header.gso_type) == (HeaderFlag.NEEDS_CSUM, Gso.TCPV4)
        assert whole.header[3:6] == (1000, 34, 16)
        assert len(whole.frame) == 54 + size
    else:
        assert [len(each.frame) for each in got] == [1054] * 4
        for each in got:
            assert (each.header.flags & HeaderFlag.NEEDS_CSUM, each.header.gso_type) == (0, 0)
            ends = each.frame[26:34] + struct.pack("!HH", 6, len(each.frame) - 34)
            assert total(ends + each.frame[34:]) == 0xFFFF


@pytest.mark.parametrize(("features", "big_endian"), [(PLAIN, False), (LEGACY, False), (LEGACY, True)])
@pytest.mark.parametrize("cut", [None, 1, 7, 12, 13, 60])
def test_segments_and_checksums_that_a_driver_leaves_to_the_kernel(
    pair: Callable[..., tuple[Guest, Wire]], features: int, big_endian: bool, cut: int | None
) -> None:
    guest, wire = pair(features=features | NetFeature.CSUM | NetFeature.HOST_TSO4, big_endian=big_endian)
    wire.socket.close()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as receiver:
        receiver.bind((guest.net._network.name, 0x0800))  # type: ignore[attr-defined]
        receiver.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        receiver.settimeout(30)
        size = 4000
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + size, 1, 0, 64, 6, 0, b"\x0a\0\0\2", b"\x0a\0\0\1")
        tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x10, 1000, 0, 0)
        sent = HOST + GUEST + b"\x08\0" + ip + tcp + random.Random(3).randbytes(size)
        header = NetHeader(HeaderFlag.NEEDS_CSUM, Gso.TCPV4, 54, 1000, 34, 16)
        whole = header.pack(12, big_endian=big_endian) + sent
        guest.send_raw(*([whole] if cut is None else [whole[:cut], whole[cut : cut + 50], whole[cut + 50 :]]))
        got = receiver.recv(70000)
    assert got[10:] == sent
    seen = NetHeader._make((*struct.unpack("=BBHHHH", got[:10]), 0))
    assert (seen.flags, seen.gso_type, seen[3:6]) == (HeaderFlag.NEEDS_CSUM, Gso.TCPV4, (1000, 34, 16))


def test_queues_of_an_interface() -> None:
    tap = Tap("vhosttest%d", pairs=2)
    net = Net(tap)
    assert net.num_queues == 5
    guest = Guest(net, enabled=1)
    wire = Wire(tap)
    guest.offer(*[2048] * 100)
    for seed in range(50):  # would be spread over all queues that are attached
        wire.socket.send(frame(100, GUEST, HOST, seed))
    assert wait_for(guest, 50) == [frame(100, GUEST, HOST, seed) for seed in range(50)]
    guest.close()
    wire.socket.close()
    net.close()


@pytest.mark.parametrize("rooms", [[2048] * 20, [20] * 100])
def test_a_driver_that_wants_few_of_the_frames(
    pair: Callable[..., tuple[Guest, Wire]], rooms: list[int]
) -> None:
    control = NetFeature.CTRL_VQ | NetFeature.CTRL_RX | NetFeature.CTRL_MAC_ADDR
    guest, wire = pair(features=PLAIN | control)
    guest.careless = True
    guest.offer(*rooms)
    assert guest.command(b"\1\1", GUEST) == guest.command(b"\0\0", b"\0") == b"\0"
    for to in (HOST, b"\x01\x00\x5e\0\0\1", GUEST):
        wire.socket.send(frame(100, to, HOST))
    assert wait_for(guest, 1) == [frame(100, GUEST, HOST)]
    assert guest.frames() == []


def test_descriptors_in_place_of_a_name() -> None:
    made = Tap("vhosttest%d")
    assert Tap(fds=[os.dup(made._fds[0])]).name == made.name
    made.close()
    with pytest.raises(DeviceError, match="is no TAP interface"):
        Tap(fds=[os.open("/dev/null", os.O_RDWR)])


def test_names_that_are_none() -> None:
    for name in ("", "x" * 16):
        with pytest.raises(DeviceError, match="1 to 15 bytes"):
            Tap(name)
    tap = Tap("vhosttest%d")
    with pytest.raises(OSError, match=f"TAP interface {tap.name}: Device or resource busy"):
        Tap(tap.name)
    tap.close()
    with pytest.raises(OSError, match="TAP interface lo: "):
        Tap("lo")


def test_an_interface_that_is_deleted_does_not_keep_the_worker_busy(
    pair: Callable[..., tuple[Guest, Wire]],
) -> None:
    guest, _ = pair()
    guest.offer(2048)
    guest.frames()
    tap = guest.net._network
    assert isinstance(tap, Tap)
    _delete(tap.name)
    assert select.select([tap._fds[0]], [], [], 30)[0]  # readable from now on
    guest.frames()
    assert guest._rings[0].lane.event_fd == -1
    guest.send(frame(64))
    assert guest.counts(1).dropped == 1
    guest.net.reset()  # the next guest has a cable that ends nowhere


def _delete(name: str) -> None:
    # RTM_DELLINK, as "ip link delete" does it.
    index = socket.if_nametoindex(name)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        body = struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)
        netlink.send(struct.pack("IHHII", 16 + len(body), 17, 5, 1, 0) + body)
        (error,) = struct.unpack_from("i", netlink.recv(4096), 16)
        assert error == 0, os.strerror(-error)
