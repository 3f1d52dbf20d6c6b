# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The network device: headers, buffers of all sizes, both kinds of ring, drivers that break the rules."""

import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhost.devices.net import Counts, Net
from vhost.devices.network import Discard
from vhost.devices.pcap import Pcap
from vhost.devices.switch import Switch
from vhost.errors import DeviceError
from vhost.virtio.net import Gso, HeaderFlag, NetFeature, NetHeader

from .net_guest import PLAIN, RING, VERSION_1, Guest

pytestmark = pytest.mark.usefixtures("unix_build")

A, B = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b"
EVERYBODY = b"\xff" * 6

Pair = tuple[Guest, Guest]


def frame(size: int, to: bytes = EVERYBODY, source: bytes = A, seed: int = 1) -> bytes:
    """A frame with random contents."""
    return to + source + b"\x88\xb5" + random.Random(seed).randbytes(size - 14)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def guests(packed: bool) -> Iterator[Callable[..., Pair]]:
    """Makes two guests on one switch."""
    made: list[Guest] = []

    def make(features: int = PLAIN, **more: int) -> Pair:
        made[:] = [Guest(Net(port), packed=packed, features=features) for port in Switch(2, **more).ports]
        return made[0], made[1]

    yield make
    for guest in made:
        guest.close()
        guest.net.close()


def test_a_frame_in_one_buffer(guests: Callable[..., Pair]) -> None:
    a, b = guests()
    b.offer(2048)
    a.send(frame(64))
    (got,) = b.received()
    assert got == (NetHeader(num_buffers=1), frame(64), [76])
    assert a.counts(1) == Counts(1, 64, 0, 0, 0)
    assert b.counts(0) == Counts(1, 64, 0, 0, 0)


def test_mergeable_buffers(guests: Callable[..., Pair]) -> None:
    a, b = guests()
    b.offer(100, (12, 38), 1000, 500, (3, 2000))
    a.send(frame(1200))
    (got,) = b.received()
    assert got == (NetHeader(num_buffers=4), frame(1200), [100, 50, 1000, 62])
    a.send(frame(14))
    assert b.received() == [(NetHeader(num_buffers=1), frame(14), [26])]


def test_a_header_in_pieces(guests: Callable[..., Pair]) -> None:
    a, b = guests()
    b.offer((1, 4, 5, 1, 1, 1, 100), (11, 200))
    for turn in range(2):
        a.send_raw(bytes(5), bytes(7) + frame(80, seed=turn)[:3], frame(80, seed=turn)[3:])
    assert [got.frame for got in b.received()] == [frame(80, seed=0), frame(80, seed=1)]


@pytest.mark.parametrize(("features", "header"), [(VERSION_1, 12), (0, 10), (int(NetFeature.MRG_RXBUF), 12)])
def test_size_of_the_header(guests: Callable[..., Pair], features: int, header: int) -> None:
    a, b = guests(features)
    assert a.header == header
    b.offer(2000)
    a.send(frame(100))
    (got,) = b.received()
    assert (got.frame, got.lengths) == (frame(100), [100 + header])


def test_without_mergeable_buffers_a_frame_has_one_buffer_or_is_dropped(guests: Callable[..., Pair]) -> None:
    a, b = guests(VERSION_1)
    b.offer(60, 2000)
    a.send(frame(100))  # does not fit into the first
    a.send(frame(40))
    a.send(frame(1500))
    assert b.frames() == [frame(40), frame(1500)]
    assert b.counts(0).dropped == 1


def test_frames_of_all_sizes_in_buffers_of_all_sizes(guests: Callable[..., Pair]) -> None:
    a, b = guests()
    rng = random.Random(5)
    sent: list[bytes] = []
    got: list[bytes] = []
    for turn in range(300):
        if b.waiting < 32:
            rooms = (12, 13, 60, 1526, 4096, (12, 700), (1, 1, 500))
            b.offer(*[rng.choice(rooms) for _ in range(rng.randrange(8))])
        size = rng.choice((14, 15, 60, 64, 100, 600, 1514, 3000))
        a.send(frame(size, seed=turn))
        sent.append(frame(size, seed=turn))
        got += b.frames()
    while len(got) < len(sent):
        b.offer(*[4096] * 2)
        more = b.frames()
        assert more
        got += more
    assert got == sent
    assert b.counts(0).frames == 300


def test_the_largest_frame(guests: Callable[..., Pair]) -> None:
    a, b = guests()
    b.offer(*[1526] * 60)
    a.send(frame(65550))
    a.send(frame(65551))
    assert b.frames() == [frame(65550)]
    assert a.counts(1) == Counts(1, 65550, 0, 1, 0)


@pytest.mark.parametrize(
    "parts",
    [(b"",), (bytes(5),), (bytes(12),), (bytes(12), bytes(13)), (bytes(25),), (bytes(12), bytes(65551))],
    ids=["nothing", "half a header", "a header", "too short", "too short in one", "too long"],
)
def test_what_is_no_frame_is_counted_and_returned(
    guests: Callable[..., Pair], parts: tuple[bytes, ...]
) -> None:
    a, b = guests()
    b.offer(2000)
    a.send_raw(*(part or b"\0" for part in parts))
    a.send(frame(60))
    assert b.frames() == [frame(60)]
    assert a.counts(1).malformed == 1


@pytest.mark.parametrize(
    "header",
    [
        NetHeader(HeaderFlag.NEEDS_CSUM, 0, 0, 0, 34, 16),
        NetHeader(0, Gso.TCPV4, 54, 1448),
        NetHeader(HeaderFlag.NEEDS_CSUM, Gso.TCPV6 | Gso.ECN, 74, 1428, 54, 16),
        NetHeader(0, Gso.UDP_L4, 42, 1472),
        NetHeader(0, 0x7F),
        NetHeader(0xFF, 0xFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF),
    ],
)
def test_offloads_that_the_switch_does_not_offer_are_dropped(
    guests: Callable[..., Pair], header: NetHeader
) -> None:
    a, b = guests()
    b.offer(2000, 2000)
    a.send(frame(1000), header=header)
    a.send(frame(60), header=NetHeader(num_buffers=9))
    assert b.received() == [(NetHeader(num_buffers=1), frame(60), [72])]
    assert a.counts(1) == Counts(1, 60, 0, 1, 0)


def test_no_buffers_drop_and_do_not_hang(guests: Callable[..., Pair]) -> None:
    a, b = guests()
    for turn in range(2000):
        a.send(frame(1500, seed=turn))
    dropped = a.counts(1).dropped
    assert 0 < dropped < 2000
    assert b.frames() == []
    got: list[bytes] = []
    while True:
        b.offer(*[2048] * 64)
        if not (more := b.frames()):
            break
        got += more
    assert got == [frame(1500, seed=turn) for turn in range(2000 - dropped)]  # the first ones, in order
    a.send(frame(64))
    assert b.frames() == [frame(64)]


@pytest.mark.parametrize("room", [1, 11])
@pytest.mark.parametrize("features", [PLAIN, VERSION_1])
def test_buffers_without_room_for_a_header(guests: Callable[..., Pair], features: int, room: int) -> None:
    a, b = guests(features)
    b.offer(*[room] * RING)
    for _ in range(10):
        a.send(frame(60))
    assert b.frames() == []
    assert b.counts(0).dropped == 10  # and the device waits for nothing


def test_a_frame_larger_than_all_there_is(guests: Callable[..., Pair]) -> None:
    a, b = guests()
    b.offer(*[20] * RING)
    a.send(frame(3000))
    a.send(frame(64))
    assert b.frames() == [frame(64)]
    assert b.counts(0).dropped == 1


def test_a_frame_waits_for_more_room(guests: Callable[..., Pair]) -> None:
    a, b = guests()
    b.offer(500, 500)
    a.send(frame(1500))
    assert b.frames() == []
    b.offer(500, 500)
    assert b.frames() == [frame(1500)]


def test_a_frame_larger_than_all_there_is_in_chains_of_several_descriptors(
    guests: Callable[..., Pair],
) -> None:
    a, b = guests()
    b.offer(*[(12, 100, 100)] * (RING // 3))
    a.send(frame(60000))
    a.send(frame(64))
    assert b.frames() == [frame(64)]
    assert b.counts(0).dropped == 1


def test_what_is_held_returns_to_the_ring(guests: Callable[..., Pair]) -> None:
    a, b = guests()
    b.offer(*[200] * 20)
    a.send(frame(100))
    assert b.frames() == [frame(100)]
    assert b.held(0) == 19
    b.net.set_enabled(0, False)
    assert b.held(0) == 0
    a.send(frame(90))  # nobody is there
    b.net.set_enabled(0, True)
    a.send(frame(80))
    assert b.frames() == [frame(80)]


def test_a_disabled_ring_has_no_effects(guests: Callable[..., Pair]) -> None:
    a, b = guests()
    b.offer(2000, 2000)
    a.net.set_enabled(1, False)
    a.send(frame(64))
    a.net.set_enabled(1, True)
    a.send(frame(65))
    b.net.set_enabled(0, False)
    assert b.frames() == []
    b.net.set_enabled(0, True)
    a.send(frame(66))
    assert b.frames() == [frame(66)]  # and nothing older
    assert a.counts(1).dropped >= 1


def test_pairs_of_queues(packed: bool) -> None:
    first, second = [Guest(Net(port), packed=packed) for port in Switch(2, pairs=3).ports]
    assert first.net.features & NetFeature.MQ
    assert first.net.num_queues == 7
    for pair in range(3):
        second.offer(2000, 2000, 2000, pair=pair)
    for pair in range(3):
        first.send(frame(60 + pair), pair=pair)
    assert [second.frames(pair) for pair in range(3)] == [[frame(60)], [frame(61)], [frame(62)]]
    # A driver that uses fewer pairs gets everything there.
    second.net.set_enabled(2, False)
    second.offer(2000, 2000)
    for pair in range(3):
        first.send(frame(70 + pair), pair=pair)
    assert sorted(second.frames(0)) == sorted(frame(70 + pair) for pair in range(3))
    assert second.frames(1) == second.frames(2) == []
    # What was under way to a queue when it was disabled does not come when it is enabled again.
    second.net.set_enabled(2, True)
    first.send(frame(80), pair=1)
    second.net.set_enabled(2, False)
    second.net.set_enabled(2, True)
    assert second.frames(1) == []
    first.send(frame(81), pair=1)
    assert second.frames(1) == [frame(81)]
    for guest in (first, second):
        guest.close()
        guest.net.close()


def test_one_pair_of_several_in_use(packed: bool) -> None:
    first, second = [Guest(Net(port), packed=packed, enabled=1) for port in Switch(2, pairs=4).ports]
    second.offer(2000)
    first.send(frame(60))
    assert second.frames() == [frame(60)]
    for guest in (first, second):
        guest.close()
        guest.net.close()


def test_discard_and_generate(packed: bool) -> None:
    guest = Guest(Net(Discard(generate=64)), packed=packed)
    for turn in range(20):
        guest.send(frame(60 + turn))
    assert guest.counts(1) == Counts(20, sum(range(60, 80)), 0, 0, 0)
    number = 0
    for rooms in ([100] * 50, [(12, 100), (5, 80), 76], [40, 40, 60]):
        guest.offer(*rooms)
        got = guest.received()
        for each in got:
            assert (len(each.frame), each.frame[12:18]) == (64, b"\x88\xb5" + number.to_bytes(4))
            number += 1
        assert [each.lengths for each in got if len(each.lengths) > 1] == (
            [[40, 36]] if rooms[0] == 40 else []
        )
    guest.close()
    guest.net.close()


def test_silence(packed: bool) -> None:
    guest = Guest(Net(Discard()), packed=packed)
    guest.offer(100)
    assert guest.frames() == []
    guest.close()
    guest.net.close()


def records(data: bytes) -> list[bytes]:
    """The frames of a pcap file."""
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    at, frames = 24, []
    while at < len(data):
        seconds, micros, captured, length = struct.unpack_from("<IIII", data, at)
        assert seconds > 1_600_000_000
        assert micros < 1_000_000
        assert captured == length
        frames.append(data[at + 16 : at + 16 + captured])
        at += 16 + captured
    return frames


def test_pcap(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "frames.pcap"
    pcap = Pcap(path)
    a, b = [Guest(Net(port, pcap=pcap), packed=packed) for port in Switch(2).ports]
    b.offer(*[500] * 20)
    a.send(frame(64))
    a.send_raw(bytes(12) + frame(900)[:1], frame(900)[1:400], frame(900)[400:])
    a.send_raw(bytes(12))
    b.send(frame(70, source=B))
    assert len(b.frames()) == 2
    for guest in (a, b):
        guest.close()
        guest.net.close()
    pcap.close()
    assert records(path.read_bytes()) == [frame(64), frame(900), frame(70, source=B)]


def test_pcap_of_what_is_received(tmp_path: Path) -> None:
    pcap = Pcap(tmp_path / "frames.pcap")
    guest = Guest(Net(Discard(generate=100), pcap=pcap))
    guest.offer(2000, 50, 50, 50)
    got = guest.frames()
    assert len(got) == 2
    guest.close()
    guest.net.close()
    pcap.close()
    assert records((tmp_path / "frames.pcap").read_bytes()) == got


def test_pcap_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        Pcap("/dev/full")
    pcap = Pcap(tmp_path / "frames.pcap")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, pcap.fd)
    os.close(full)
    guest = Guest(Net(Discard(), pcap=pcap))
    guest.send(frame(64))
    assert guest.counts(1).unrecorded == 1
    pcap.close()
    guest.close()
    guest.net.close()


def test_configuration() -> None:
    net = Net(Discard(pairs=2), mac=A, mtu=9000)
    assert net.offers_config
    assert net.features & (NetFeature.MAC | NetFeature.MTU | NetFeature.MQ) == (
        NetFeature.MAC | NetFeature.MTU | NetFeature.MQ
    )
    assert net.config() == A + bytes((1, 0, 2, 0)) + (9000).to_bytes(2, "little")
    plain = Net(Discard())
    assert (plain.offers_config, plain.config()) == (False, b"")
    with pytest.raises(DeviceError, match="6 bytes at offset 0 refused"):
        net.set_config(0, bytes(6))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mac": b"\1" + bytes(5)}, "not the address of one station"),
        ({"mac": bytes(6)}, "not the address of one station"),
        ({"mtu": 67}, "an MTU of 67 bytes: 68 to 65535"),
        ({"mtu": 65536}, "an MTU of 65536 bytes"),
    ],
)
def test_parameters_out_of_range(arguments: dict[str, int | bytes], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        Net(Discard(), **arguments)  # type: ignore[arg-type]


def test_too_many_queues() -> None:
    with pytest.raises(DeviceError, match="128 queue pairs: 1 to 127"):
        Net(Discard(pairs=128))
    with pytest.raises(DeviceError, match="frames of 17 bytes"):
        Discard(generate=17)
