# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``vhost-net`` as a process: front-ends of ours exchange frames through it."""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.devices.test_net_responder import arp, dhcp
from vhost.errors import LocalProtocolError, RefusedError
from vhost.frontend import Completion, Frontend, LinearIommu, connect
from vhost.protocol import VirtioFeature
from vhost.virtio.net import NetFeature

from .programs import Running, daemon, run

pytestmark = pytest.mark.usefixtures("unix_build")

NET = "vhost.daemon.net"
EVERYBODY = b"\xff" * 6


class Card:
    """A network card that is driven by a front-end; 64 receive buffers are always with the device.

    :param big_endian: its driver is a legacy one on a big-endian machine.
    """

    def __init__(self, frontend: Frontend, pair: int = 0, *, big_endian: bool = False) -> None:
        self._one = (1).to_bytes(2, "big" if big_endian else "little")
        self._rx, self._tx = frontend.queue(2 * pair), frontend.queue(2 * pair + 1)
        for _ in range(64):
            self._rx.submit(b"", 2048)

    def send(self, *frames: bytes) -> None:
        for each in frames:
            self._tx.submit(bytes(12) + each)
        for _ in frames:
            self._tx.wait()

    def receive(self) -> bytes:
        """The next frame."""
        done: Completion = self._rx.wait(timeout=60)
        self._rx.submit(b"", 2048)
        assert done.buffer[:12] == bytes(10) + self._one
        return done.buffer[12 : done.written]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as it:
        yield it


def plug(stack: ExitStack, path: Path | str, *, queues: int = 2, **how: Any) -> Frontend:
    return stack.enter_context(connect(str(path), queues=queues, queue_size=256, **how))


def start(stack: ExitStack, folder: Path, *options: str) -> Running:
    return stack.enter_context(daemon(folder, NET, "-s", f"{folder}/s", *options))


def frame(to: bytes, source: bytes, text: str) -> bytes:
    return to + source + b"\x88\xb5" + text.encode().ljust(50, b".")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("wait", [(), ("--poll-us=0",), ("--workers=1",)])
def test_two_guests_on_a_switch(
    tmp_path: Path, stack: ExitStack, packed: bool, wait: tuple[str, ...]
) -> None:
    running = start(stack, tmp_path, "-c2", *wait)
    a, b = (Card(plug(stack, f"{tmp_path}/s{index}", packed=packed)) for index in range(2))
    mac_a, mac_b = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
    a.send(frame(EVERYBODY, mac_a, "who is there"))
    assert b.receive() == frame(EVERYBODY, mac_a, "who is there")
    for turn in range(200):
        b.send(frame(mac_a, mac_b, f"from b {turn}"))
        assert a.receive() == frame(mac_a, mac_b, f"from b {turn}")
        a.send(*[frame(mac_b, mac_a, f"from a {turn} {part}") for part in range(20)])
        assert [b.receive() for _ in range(20)] == [
            frame(mac_b, mac_a, f"from a {turn} {part}") for part in range(20)
        ]
    assert running.end() == 0
    assert "ERROR" not in running.stderr
    assert "Traceback" not in running.stderr


@pytest.mark.parametrize(
    "how",
    [
        {"in_order": True},
        {"in_order": True, "packed": True},
        {"event_idx": False, "indirect": False},
        {"call": False, "kick": False},
    ],
    ids=lambda how: " ".join(how),
)
def test_all_kinds_of_rings(tmp_path: Path, stack: ExitStack, how: dict[str, bool]) -> None:
    running = start(stack, tmp_path, "-c2")
    a, b = (Card(plug(stack, f"{tmp_path}/s{index}", **how)) for index in range(2))
    for turn in range(300):
        a.send(frame(EVERYBODY, b"\2\0\0\0\0\1", str(turn)))
        assert b.receive() == frame(EVERYBODY, b"\2\0\0\0\0\1", str(turn))
    assert running.end() == 0


def test_guests_of_either_byte_order(tmp_path: Path, stack: ExitStack) -> None:
    running = start(stack, tmp_path, "-c3", "--respond=10.0.2.0/24")
    ends = [
        Card(plug(stack, f"{tmp_path}/s{index}", big_endian=big), big_endian=big)
        for index, big in enumerate((True, False, True))
    ]
    for turn in range(30):
        sent = frame(EVERYBODY, b"\2\0\0\0\0" + bytes((turn % 3,)), str(turn))
        ends[turn % 3].send(sent)
        assert [end.receive() for number, end in enumerate(ends) if number != turn % 3] == [sent] * 2
    for end in ends:
        end.send(arp("10.0.2.1"))
        for other in ends:
            assert other.receive()[12:14] == b"\x08\x06"
    assert running.end() == 0


def test_numbered_frames_for_a_big_endian_guest(tmp_path: Path, stack: ExitStack) -> None:
    start(stack, tmp_path, "--generate=64")
    card = Card(plug(stack, tmp_path / "s", big_endian=True), big_endian=True)
    for number in range(100):
        assert card.receive()[12:18] == b"\x88\xb5" + number.to_bytes(4)


def test_a_guest_with_an_iommu(tmp_path: Path, stack: ExitStack) -> None:
    running = start(stack, tmp_path, "-c2", "--features=+iommu,+indirect")
    ends = [
        stack.enter_context(connect(f"{tmp_path}/s{index}", queues=2, iommu=LinearIommu()))
        for index in range(2)
    ]
    a, b = map(Card, ends)
    for turn in range(300):
        a.send(frame(EVERYBODY, b"\2\0\0\0\0\1", str(turn)))
        assert b.receive() == frame(EVERYBODY, b"\2\0\0\0\0\1", str(turn))
    assert running.end() == 0


def test_three_guests_come_and_go(tmp_path: Path, stack: ExitStack) -> None:
    running = start(stack, tmp_path, "-c3")
    a = Card(plug(stack, f"{tmp_path}/s0"))
    for turn in range(3):
        with ExitStack() as short:
            b, c = (Card(plug(short, f"{tmp_path}/s{index}")) for index in (1, 2))
            a.send(frame(EVERYBODY, b"\2\0\0\0\0\1", str(turn)))
            assert b.receive() == c.receive() == frame(EVERYBODY, b"\2\0\0\0\0\1", str(turn))
    a.send(frame(EVERYBODY, b"\2\0\0\0\0\1", "nobody"))
    assert running.end() == 0


def test_a_host_that_answers(tmp_path: Path, stack: ExitStack) -> None:
    running = start(stack, tmp_path, "--respond=10.0.2.0/24", "--pcap", f"{tmp_path}/frames")
    card = Card(plug(stack, tmp_path / "s"))
    card.send(arp("10.0.2.1"))
    reply = card.receive()
    assert reply[12:22] == bytes.fromhex("08060001080006040002")
    assert reply[28:32] == bytes((10, 0, 2, 1))
    card.send(dhcp(1))
    offer = card.receive()
    assert offer[58:62] == bytes((10, 0, 2, 2))
    assert running.end() == 0
    data = (tmp_path / "frames").read_bytes()
    assert struct.unpack_from("<I", data) == (0xA1B2C3D4,)
    for each in (arp("10.0.2.1"), reply, dhcp(1), offer):
        assert each in data


def test_pairs_of_queues(tmp_path: Path, stack: ExitStack) -> None:
    running = start(stack, tmp_path, "-c2", "--num-queues=2")
    ends = [plug(stack, f"{tmp_path}/s{index}", queues=4) for index in range(2)]
    a, b = ([Card(end, pair) for pair in range(2)] for end in ends)
    for pair in range(2):
        a[pair].send(frame(EVERYBODY, b"\2\0\0\0\0\1", f"by {pair}"))
        assert b[pair].receive() == frame(EVERYBODY, b"\2\0\0\0\0\1", f"by {pair}")
    assert running.end() == 0


def test_the_number_of_queues_counts_rings(tmp_path: Path, stack: ExitStack) -> None:
    start(stack, tmp_path, "--num-queues=3")
    with connect(str(tmp_path / "s"), queues=7) as frontend:
        assert frontend.num_queues == 7
    with pytest.raises(LocalProtocolError, match="8 queues wanted, but the backend has 7"):
        connect(str(tmp_path / "s"), queues=8)


@pytest.mark.parametrize("way", [(), ("--workers=1",), ("--poll-us=0",)])
def test_the_control_queue(tmp_path: Path, stack: ExitStack, way: tuple[str, ...]) -> None:
    running = start(stack, tmp_path, "-c2", "--num-queues=2", "--mac=02:00:00:00:00:01", *way)
    end = plug(stack, f"{tmp_path}/s0", queues=5)
    guest = Card(end)
    b = Card(plug(stack, f"{tmp_path}/s1", queues=2))
    control = end.queue(4)

    def command(data: bytes) -> bytes:
        control.submit(data, 1)
        return control.wait(timeout=60).data

    b.send(frame(b"\3\0\0\0\0\1", b"\2\0\0\0\0\2", "to a group"))
    assert guest.receive()[14:24] == b"to a group"
    assert command(b"\0\0\0") == b"\0"  # not promiscuous
    b.send(frame(b"\3\0\0\0\0\1", b"\2\0\0\0\0\2", "to a group"))
    b.send(frame(b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", "to the guest"))
    assert guest.receive()[14:26] == b"to the guest"
    assert command(b"\1\1\2\0\0\0\0\7") == b"\0"
    assert end.config(size=6) == b"\2\0\0\0\0\7"
    assert command(b"\4\0\2\0") == b"\0"
    assert command(b"\4\0\3\0") == b"\1"
    assert command(b"?") == b"\1"
    b.send(frame(b"\2\0\0\0\0\7", b"\2\0\0\0\0\2", "to the new address"))
    assert guest.receive()[14:32] == b"to the new address"
    assert running.end() == 0


def test_rings_that_other_features_have(tmp_path: Path, stack: ExitStack) -> None:
    start(stack, tmp_path, "--num-queues=2")
    plain = VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES
    for features, queues in (
        (plain | NetFeature.CTRL_VQ | NetFeature.MQ, 5),
        (plain | NetFeature.CTRL_VQ, 3),
        (plain, 4),
    ):
        with connect(str(tmp_path / "s"), queues=queues, features=int(features)):
            pass
    for features, queues in ((plain | NetFeature.CTRL_VQ, 4), (plain, 5)):
        with pytest.raises(RefusedError, match="SET_VRING_KICK"):
            connect(str(tmp_path / "s"), queues=queues, features=int(features))


def test_discard_and_generate(tmp_path: Path, stack: ExitStack) -> None:
    running = start(stack, tmp_path, "--generate=64", "--poll-us=0")
    card = Card(plug(stack, tmp_path / "s"))
    for number in range(1000):
        got = card.receive()
        assert (len(got), got[12:18]) == (64, b"\x88\xb5" + number.to_bytes(4))
        if number % 100 == 0:
            card.send(*[frame(EVERYBODY, b"\2\0\0\0\0\1", "away")] * 20)
    assert running.end() == 0


def test_configuration(tmp_path: Path, stack: ExitStack) -> None:
    start(stack, tmp_path, "-c2", "--mac=52:54:00:00:00:ff", "--mtu=9000")
    for index in range(2):
        with connect(str(tmp_path / f"s{index}"), queues=1) as frontend:
            space = frontend.config(size=12)
            assert space[:6] == bytes.fromhex(("5254000000ff", "525400000100")[index])
            assert space[8:12] == (1).to_bytes(2, "little") + (9000).to_bytes(2, "little")


def test_a_pcap_that_cannot_be_made(tmp_path: Path) -> None:
    done = run(NET, "-s", f"{tmp_path}/s", "--pcap", "/nonexistent/p")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vhost-net: error: /nonexistent/p: No such file or directory\n"
    assert not (tmp_path / "s").exists()


def test_networks_that_do_not_fit_together(tmp_path: Path) -> None:
    for more in ("--respond=10.0.2.0/24", "--tap=x"):
        done = run(NET, "-s", f"{tmp_path}/s", "--discard", more)
        assert done.returncode == 2
        assert "not allowed with argument" in done.stderr
