# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The control queue of network devices: what a driver asks for by it, and what that changes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vhost
from tests.backend.serving import Serving
from vhost.devices.net import Net
from vhost.devices.switch import Switch
from vhost.virtio.net import Ack, NetFeature, Status

from .net_guest import PLAIN, Guest

pytestmark = pytest.mark.usefixtures("unix_build")

CONTROL = PLAIN | int(
    NetFeature.CTRL_VQ
    | NetFeature.CTRL_RX
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_MAC_ADDR
    | NetFeature.GUEST_ANNOUNCE
    | NetFeature.MQ
)
OK, ERR = bytes([Ack.OK]), bytes([Ack.ERR])
PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST = (bytes([0, mode]) for mode in range(6))
ON, OFF = b"\1", b"\0"
TABLE_SET, ADDR_SET = b"\1\0", b"\1\1"
VLAN_ADD, VLAN_DEL = b"\2\0", b"\2\1"
ANNOUNCE_ACK = b"\3\0"
PAIRS_SET = b"\4\0"

EVERYBODY = b"\xff" * 6
HERE, THERE, ELSE = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))
GROUP, OTHER_GROUP = b"\x01\x00\x5e\0\0\1", b"\x33\x33\0\0\0\1"

Pair = tuple[Guest, Guest]


def frame(to: bytes, vlan: int | None = None) -> bytes:
    """A frame, with a tag if it is in a VLAN."""
    tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2)
    return to + THERE + tag + b"\x88\xb5" + bytes(40)


def tables(stations: list[bytes], groups: list[bytes], order: str = "little") -> bytes:
    """What MAC_TABLE_SET carries."""
    count = [len(each).to_bytes(4, "big" if order == "big" else "little") for each in (stations, groups)]
    return b"".join([count[0], *stations, count[1], *groups])


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def guests(packed: bool) -> Iterator[Callable[..., Pair]]:
    """Makes two guests on one switch; the first drives its control queue and has plenty of buffers."""
    made: list[Guest] = []

    def make(features: int = CONTROL, pairs: int = 1, mac: bytes | None = HERE) -> Pair:
        first, second = Switch(2, pairs=pairs).ports
        made.append(Guest(Net(first, mac=mac), packed=packed, features=features))
        made.append(Guest(Net(second), packed=packed, features=PLAIN))
        made[-2].offer(*[256] * 100)
        return made[-2], made[-1]

    yield make
    for guest in made:
        guest.close()
        guest.net.close()


ALL = {
    "everybody": frame(EVERYBODY),
    "here": frame(HERE),
    "else": frame(ELSE),
    "group": frame(GROUP),
    "other group": frame(OTHER_GROUP),
}


def seen(guest: Guest, other: Guest) -> set[str]:
    """Which frames of the other guest arrive."""
    for each in ALL.values():
        other.send(each)
    arrived = guest.frames()
    return {name for name, each in ALL.items() if each in arrived}


def test_a_driver_that_says_nothing_receives_everything(guests: Callable[..., Pair]) -> None:
    assert seen(*guests()) == set(ALL)


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ([], {"everybody", "here"}),
        ([PROMISC + ON], set(ALL)),
        ([ALLMULTI + ON], {"everybody", "here", "group", "other group"}),
        ([ALLMULTI + ON, ALLMULTI + OFF], {"everybody", "here"}),
        ([ALLUNI + ON], {"everybody", "here", "else"}),
        ([ALLMULTI + ON, NOMULTI + ON], {"everybody", "here"}),
        ([ALLUNI + ON, NOUNI + ON], {"everybody"}),
        ([NOBCAST + ON, ALLMULTI + ON], {"here", "group", "other group"}),
        ([NOBCAST + ON, NOBCAST + OFF], {"everybody", "here"}),
        ([NOBCAST + ON, NOUNI + ON, NOMULTI + ON], set()),
        ([NOBCAST + ON, NOUNI + ON, NOMULTI + ON, PROMISC + ON], set(ALL)),
        ([TABLE_SET + tables([ELSE], [])], {"everybody", "here", "else"}),
        ([TABLE_SET + tables([], [GROUP])], {"everybody", "here", "group"}),
        ([TABLE_SET + tables([ELSE], [GROUP]), TABLE_SET + tables([], [])], {"everybody", "here"}),
        ([ADDR_SET + ELSE], {"everybody", "else"}),
    ],
)
def test_what_is_received(guests: Callable[..., Pair], commands: list[bytes], expected: set[str]) -> None:
    guest, other = guests()
    assert guest.command(PROMISC, OFF) == OK
    for each in commands:
        assert guest.command(each[:1], each[1:2], each[2:]) == OK
    assert seen(guest, other) == expected


@pytest.mark.parametrize(
    ("stations", "groups", "expected"),
    [
        (63, 0, {"everybody", "here"}),
        (65, 1, {"everybody", "here", "else"}),
        (0, 64, {"everybody", "here"}),
        (0, 65, {"everybody", "here", "group", "other group"}),
        (64, 1, {"everybody", "here", "group", "other group"}),
        (1000, 1000, set(ALL)),
    ],
)
def test_more_addresses_than_the_filter_holds(
    guests: Callable[..., Pair], stations: int, groups: int, expected: set[str]
) -> None:
    guest, other = guests()
    assert guest.command(PROMISC, OFF) == OK
    many = tables(
        [b"\x02\1" + n.to_bytes(4) for n in range(stations)],
        [b"\x03\1" + n.to_bytes(4) for n in range(groups)],
    )
    assert guest.command(TABLE_SET, many) == OK
    assert seen(guest, other) == expected


def test_without_a_known_address_no_station_is_excluded(guests: Callable[..., Pair]) -> None:
    guest, other = guests(mac=None)
    assert guest.command(PROMISC, OFF) == OK
    assert seen(guest, other) == {"everybody", "here", "else"}
    assert guest.command(ADDR_SET, HERE) == OK
    assert seen(guest, other) == {"everybody", "here"}


def test_vlans(guests: Callable[..., Pair]) -> None:
    guest, other = guests()

    def arrive() -> set[int | None]:
        numbers = [None, 0, 1, 63, 64, 4094]
        for number in numbers:
            other.send(frame(EVERYBODY, number))
        arrived = guest.frames()
        return {number for number in numbers if frame(EVERYBODY, number) in arrived}

    assert arrive() == {None, 0, 1, 63, 64, 4094}
    assert guest.command(PROMISC, OFF) == OK
    assert arrive() == {None, 0}
    for number in (63, 4094):
        assert guest.command(VLAN_ADD, number.to_bytes(2, "little")) == OK
    assert arrive() == {None, 0, 63, 4094}
    assert guest.command(VLAN_DEL, (63).to_bytes(2, "little")) == OK
    assert arrive() == {None, 0, 4094}


def test_vlans_of_a_driver_without_a_filter_for_them(guests: Callable[..., Pair]) -> None:
    guest, other = guests(CONTROL & ~NetFeature.CTRL_VLAN)
    assert guest.command(PROMISC, OFF) == OK
    other.send(frame(EVERYBODY, 5))
    assert guest.frames() == [frame(EVERYBODY, 5)]
    assert guest.command(VLAN_ADD, b"\5\0") == ERR


def test_the_address_that_a_driver_sets(guests: Callable[..., Pair], packed: bool) -> None:
    switch = Switch(2)
    guest, other = [Guest(Net(port, mac=HERE), packed=packed, features=CONTROL) for port in switch.ports]
    guest.send(HERE.join([EVERYBODY, bytes(50)]))
    assert (switch.where(HERE), switch.where(ELSE)) == (0, None)
    assert guest.command(ADDR_SET, ELSE) == OK
    assert guest.net.config()[:6] == ELSE
    assert (switch.where(HERE), switch.where(ELSE)) == (None, 0)
    guest.net.reset()
    assert guest.net.config()[:6] == HERE
    for each in (guest, other):
        each.close()
        each.net.close()


@pytest.mark.parametrize("features", [CONTROL, CONTROL & ~NetFeature.MQ], ids=["mq", "no mq"])
def test_the_place_of_the_queue(packed: bool, features: int) -> None:
    guest = Guest(Net(Switch(1, pairs=3).ports[0]), packed=packed, features=features)
    assert guest.command(PROMISC, OFF) == OK
    assert guest.command(PAIRS_SET, b"\3\0") == (OK if features & NetFeature.MQ else ERR)
    guest.close()
    guest.net.close()


def test_pairs_in_use(guests: Callable[..., Pair]) -> None:
    guest, other = guests(pairs=3)
    guest.offer(*[256] * 10, pair=1)
    guest.offer(*[256] * 10, pair=2)

    def arrive() -> list[int]:
        for pair in range(3):
            other.send(frame(EVERYBODY), pair=pair)
        return [len(guest.frames(pair)) for pair in range(3)]

    assert arrive() == [3, 0, 0]
    assert guest.command(PAIRS_SET, b"\3\0") == OK
    assert arrive() == [1, 1, 1]
    assert guest.command(PAIRS_SET, b"\2\0") == OK
    assert arrive() == [2, 1, 0]
    for wrong in (b"\0\0", b"\4\0", b"\3", b"\3\0\0", b""):
        assert guest.command(PAIRS_SET, wrong) == ERR
    assert arrive() == [2, 1, 0]


def test_a_front_end_that_keeps_the_queue_decides_by_enabling_rings(packed: bool) -> None:
    first, second = Switch(2, pairs=2).ports
    guest = Guest(Net(first), packed=packed, features=PLAIN | NetFeature.MQ)
    other = Guest(Net(second), packed=packed)
    for pair in range(2):
        guest.offer(*[256] * 10, pair=pair)
        other.send(frame(GROUP, 5), pair=pair)
    assert [guest.frames(pair) for pair in range(2)] == [[frame(GROUP, 5)]] * 2
    for each in (guest, other):
        each.close()
        each.net.close()


@pytest.mark.parametrize(
    "command",
    [
        (b"",),
        (b"\0",),
        (b"\5", b"\0", b"\0"),
        (b"\xff" * 300,),
        (b"\0\6", b"\0"),
        (b"\0\0",),
        (b"\0\0", b"\2"),
        (b"\0\0", b"\0\0"),
        (b"\1\2", HERE),
        (TABLE_SET,),
        (TABLE_SET, bytes(7)),
        (TABLE_SET, tables([HERE], [GROUP]) + b"\0"),
        (TABLE_SET, tables([HERE], [GROUP])[:-1]),
        (TABLE_SET, b"\xff\xff\xff\xff" + bytes(100)),
        (TABLE_SET, bytes(4) + b"\1\0\0\x80" + bytes(100)),
        (TABLE_SET, tables([bytes(6)] * 12000, [])),
        (ADDR_SET,),
        (ADDR_SET, GROUP),
        (ADDR_SET, bytes(6)),
        (ADDR_SET, HERE + b"\0"),
        (VLAN_ADD, b"\0"),
        (VLAN_ADD, b"\0\x10"),
        (b"\2\2", b"\1\0"),
        (b"\3\1",),
        (ANNOUNCE_ACK, b"\0"),
        (b"\4\1", b"\1\0"),
    ],
)
def test_commands_that_cannot_be_obeyed(guests: Callable[..., Pair], command: tuple[bytes, ...]) -> None:
    guest, other = guests()
    assert guest.command(*[part or b"\0" for part in command]) == ERR
    assert guest.command(ANNOUNCE_ACK) == OK
    assert seen(guest, other) == set(ALL)


@pytest.mark.parametrize(
    ("feature", "command"),
    [
        (NetFeature.CTRL_RX, PROMISC + OFF),
        (NetFeature.CTRL_RX_EXTRA, ALLUNI + ON),
        (NetFeature.CTRL_RX, TABLE_SET + tables([], [])),
        (NetFeature.CTRL_MAC_ADDR, ADDR_SET + ELSE),
        (NetFeature.CTRL_VLAN, VLAN_ADD + b"\1\0"),
        (NetFeature.GUEST_ANNOUNCE, ANNOUNCE_ACK),
        (NetFeature.MQ, PAIRS_SET + b"\1\0"),
    ],
)
def test_commands_need_their_feature(
    guests: Callable[..., Pair], feature: NetFeature, command: bytes
) -> None:
    guest, _ = guests()
    assert guest.command(command) == OK
    without, _ = guests(CONTROL & ~feature)
    assert without.command(command) == ERR


def test_a_guest_does_not_fill_the_log(guests: Callable[..., Pair], caplog: pytest.LogCaptureFixture) -> None:
    guest, _ = guests()
    for _ in range(3):
        assert guest.command(PAIRS_SET, b"\0\0") == ERR
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == ["net: control command 0400 refused: 0 pairs of queues: 1 to 1 are there"]


def test_answers_of_all_sizes(guests: Callable[..., Pair]) -> None:
    guest, _ = guests()
    assert guest.command(ANNOUNCE_ACK, room=0) == b""
    assert guest.command(ANNOUNCE_ACK, room=9) == OK


def test_what_was_set_ends_with_its_driver(guests: Callable[..., Pair]) -> None:
    for end in (
        lambda it: it.net.set_enabled(2, False),
        lambda it: it.restart(2, anew=True),
        lambda it: it.net.reset(),
        lambda it: it.net.negotiated(PLAIN),
    ):
        guest, other = guests()
        assert guest.command(PROMISC, OFF) == OK
        assert seen(guest, other) == {"everybody", "here"}
        end(guest)
        assert seen(guest, other) == set(ALL)


def test_what_was_set_stays_while_the_queue_is_moved(guests: Callable[..., Pair]) -> None:
    guest, other = guests()
    assert guest.command(PROMISC, OFF) == OK
    guest.restart(2, anew=False)
    assert seen(guest, other) == {"everybody", "here"}


def test_a_disabled_control_queue_is_not_served(guests: Callable[..., Pair]) -> None:
    guest, other = guests()
    guest.net.set_enabled(2, False)
    with pytest.raises(ValueError, match="not enough values"):
        guest.command(PROMISC, OFF)
    assert seen(guest, other) == set(ALL)


@pytest.mark.parametrize("order", ["little", "big"])
def test_numbers_are_in_the_order_of_the_ring(order: str) -> None:
    first, second = Switch(2, pairs=2).ports
    features = CONTROL & ~(1 << 32)
    guest = Guest(Net(first, mac=HERE), features=features, big_endian=order == "big")
    other = Guest(Net(second))
    guest.offer(*[256] * 20)
    wrong = "big" if order == "little" else "little"
    assert guest.command(PROMISC, OFF) == OK
    assert guest.command(PAIRS_SET, (2).to_bytes(2, "big" if order == "big" else "little")) == OK
    assert guest.command(TABLE_SET, tables([], [GROUP], order)) == OK
    assert guest.command(TABLE_SET, tables([], [GROUP], wrong)) == ERR
    assert seen(guest, other) >= {"group"}
    for each in (guest, other):
        each.close()
        each.net.close()


@pytest.mark.parametrize("mode", ["threads", "asyncio"])
def test_over_the_socket(tmp_path: Path, mode: str) -> None:
    (port,) = Switch(1).ports
    with (
        Serving(Net(port, mac=HERE), mode, tmp_path / "s") as server,
        vhost.connect(str(server.path), queues=3) as guest,
    ):
        control = guest.queue(2)
        control.submit(ADDR_SET + ELSE, 1)
        assert control.wait(timeout=60).data == OK
        assert guest.config(0, 6) == ELSE
        control.submit(PAIRS_SET + b"\1\0", 1)
        assert control.wait(timeout=60).data == ERR
    port.close()


def test_what_is_offered() -> None:
    alone = Net(Switch(1).ports[0])
    assert alone.num_queues == 3
    assert not alone.offers_config
    assert not alone.features & (NetFeature.STATUS | NetFeature.MQ | NetFeature.MAC)
    many = Net(Switch(1, pairs=4).ports[0])
    assert many.num_queues == 9
    assert many.config() == bytes(6) + bytes([Status.LINK_UP, 0, 4, 0, 0, 0])
    assert many.features & NetFeature.STATUS
    assert many.features & NetFeature.MQ
    for net in (alone, many):
        # What needs the control queue is offered with it (5.1.3.1).
        assert net.features & NetFeature.CTRL_VQ
