# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The virtual switch: learning, flooding, forgetting, and guests that would fill its table."""

import random
import time
from collections.abc import Callable, Iterator

import pytest

from vhost.devices.net import Net
from vhost.devices.switch import Switch
from vhost.errors import DeviceError

from .net_guest import Guest

pytestmark = pytest.mark.usefixtures("unix_build")

EVERYBODY = b"\xff" * 6
MULTICAST = b"\x01\x00\x5e\0\0\1"


def mac(number: int) -> bytes:
    """The address of a guest."""
    return b"\x02" + number.to_bytes(5)


def frame(to: bytes, source: bytes, text: bytes = b"") -> bytes:
    return to + source + b"\x88\xb5" + text.ljust(46, b".")


class Hub:
    """A switch with a guest at each port, which has buffers for everything."""

    def __init__(self, ports: int, **more: int) -> None:
        self.switch = Switch(ports, **more)
        self.guests = [Guest(Net(port)) for port in self.switch.ports]
        for guest in self.guests:
            guest.offer(*[256] * 100)

    def send(self, port: int, data: bytes) -> list[int]:
        """The ports at which a frame from `port` has arrived."""
        self.guests[port].send(data)
        arrived = [guest.frames() for guest in self.guests]
        for guest, frames in zip(self.guests, arrived, strict=True):
            guest.offer(*[256] * len(frames))
            assert frames in ([], [data])
        return [port for port, frames in enumerate(arrived) if frames]

    def close(self) -> None:
        for guest in self.guests:
            guest.close()
            guest.net.close()


@pytest.fixture
def hub() -> Iterator[Callable[..., Hub]]:
    made: list[Hub] = []

    def make(ports: int, **more: int) -> Hub:
        made.append(Hub(ports, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_flood_then_learn(hub: Callable[..., Hub]) -> None:
    h = hub(4)
    assert h.send(0, frame(mac(1), mac(0))) == [1, 2, 3]  # nobody knows it yet
    assert h.send(1, frame(mac(0), mac(1))) == [0]
    assert h.send(0, frame(mac(1), mac(0))) == [1]
    assert h.send(2, frame(mac(9), mac(2))) == [0, 1, 3]
    assert h.switch.where(mac(1)) == 1
    assert h.switch.where(mac(9)) is None


def test_never_back_to_the_sender(hub: Callable[..., Hub]) -> None:
    h = hub(3)
    for to in (EVERYBODY, MULTICAST, mac(77)):
        assert h.send(1, frame(to, mac(1))) == [0, 2]
    assert h.send(1, frame(mac(1), mac(5))) == []  # both are behind this port
    assert h.send(1, frame(mac(1), mac(1))) == []


def test_broadcast_and_multicast_go_to_all(hub: Callable[..., Hub]) -> None:
    h = hub(3)
    h.send(2, frame(EVERYBODY, mac(2)))
    assert h.send(0, frame(EVERYBODY, mac(0))) == [1, 2]
    assert h.send(0, frame(MULTICAST, mac(0))) == [1, 2]


def test_a_group_is_no_sender(hub: Callable[..., Hub]) -> None:
    h = hub(2)
    for source in (EVERYBODY, MULTICAST, bytes(6)):
        h.send(0, frame(mac(1), source))
        assert h.switch.where(source) is None


def test_a_station_that_moves(hub: Callable[..., Hub]) -> None:
    h = hub(3)
    h.send(0, frame(EVERYBODY, mac(7)))
    assert h.send(1, frame(mac(7), mac(1))) == [0]
    h.send(2, frame(EVERYBODY, mac(7)))
    assert h.switch.where(mac(7)) == 2
    assert h.send(1, frame(mac(7), mac(1))) == [2]


def test_a_silent_station_is_forgotten(hub: Callable[..., Hub]) -> None:
    h = hub(3, max_age=0)
    h.send(0, frame(EVERYBODY, mac(7)))
    end = time.monotonic() + 30
    while h.switch.where(mac(7)) is not None:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert h.send(1, frame(mac(7), mac(1))) == [0, 2]


def test_a_guest_that_goes_is_forgotten(hub: Callable[..., Hub]) -> None:
    h = hub(3)
    h.send(0, frame(EVERYBODY, mac(7)))
    h.guests[0].net.set_enabled(0, False)
    assert h.switch.where(mac(7)) is None
    assert h.send(1, frame(mac(7), mac(1))) == [2]


def test_a_guest_that_comes_gets_nothing_old(hub: Callable[..., Hub]) -> None:
    h = hub(2)
    h.guests[0].send(frame(EVERYBODY, mac(0)))
    h.guests[1].close()
    h.guests[1] = Guest(Net(h.switch.ports[1]))
    h.guests[1].offer(*[256] * 10)
    assert h.guests[1].frames() == []
    assert h.send(0, frame(EVERYBODY, mac(0))) == [1]


def test_a_guest_that_invents_addresses_displaces_nobody(hub: Callable[..., Hub]) -> None:
    h = hub(3)
    assert h.send(0, frame(EVERYBODY, mac(0))) == [1, 2]
    rng = random.Random(3)
    invented = [b"\x06" + rng.randbytes(5) for _ in range(3000)]
    for source in invented:
        h.guests[1].send(frame(mac(0), source))
        if len(h.guests[0].frames()):
            h.guests[0].offer(256)
    known = sum(h.switch.where(source) == 1 for source in invented)
    assert 100 < known <= 512  # its quota
    assert h.switch.where(mac(0)) == 0
    # There is still room for others.
    fresh = [mac(1000 + index) for index in range(50)]
    for source in fresh:
        h.send(2, frame(mac(0), source))
    assert sum(h.switch.where(source) == 2 for source in fresh) == 50


def test_a_port_full_of_silent_stations_learns_again(hub: Callable[..., Hub]) -> None:
    h = hub(2, max_age=0)
    h.send(0, frame(EVERYBODY, mac(0)))
    for index in range(600):
        h.guests[1].send(frame(mac(0), mac(1000 + index)))
        h.guests[0].frames()
        h.guests[0].offer(256)
    end = time.monotonic() + 30
    while h.switch.where(mac(5000)) is None:
        assert time.monotonic() < end
        time.sleep(0.2)
        h.send(1, frame(EVERYBODY, mac(5000)))


def test_large_frames_through_a_switch_with_many_ports() -> None:
    switch = Switch(23)
    guests = [Guest(Net(port)) for port in switch.ports]
    for size in (65512, *[65550] * 5):
        guests[1].offer(*[2048] * 33)
        data = frame(EVERYBODY, mac(0)).ljust(size, b"x")
        guests[0].send(data)
        assert guests[1].frames() == [data]
    for guest in guests:
        guest.close()
        guest.net.close()


def test_frames_keep_their_order_through_all_senders(hub: Callable[..., Hub]) -> None:
    h = hub(3)
    h.send(2, frame(EVERYBODY, mac(2)))
    got: dict[bytes, list[bytes]] = {mac(0): [], mac(1): []}
    for turn in range(500):
        for port in (0, 1):
            h.guests[port].send(frame(mac(2), mac(port), str(turn).encode()))
        if turn % 20 == 0:
            frames = h.guests[2].frames()
            h.guests[2].offer(*[256] * len(frames))
            for each in frames:
                got[each[6:12]].append(each)
    got_all = h.guests[2].frames()
    for each in got_all:
        got[each[6:12]].append(each)
    for port in (0, 1):
        sent = [frame(mac(2), mac(port), str(turn).encode()) for turn in range(500)]
        assert got[mac(port)] == sent


@pytest.mark.parametrize(("ports", "pairs"), [(0, 1), (1, 0), (257, 1), (3, 100)])
def test_sizes_out_of_range(ports: int, pairs: int) -> None:
    with pytest.raises(DeviceError, match="all together have 1 to 256"):
        Switch(ports, pairs=pairs)
