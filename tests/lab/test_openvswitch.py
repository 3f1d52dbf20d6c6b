# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Open vSwitch connects to our front-ends that listen, and listens for vhost-net, which connects to it."""

import random
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemons import Daemon, ours
from tests.lab.host import Host
from tests.lab.openvswitch import OPEN_VSWITCH, Switch
from tests.lab.peers import met
from vhost import listen
from vhost.devices.responder import checksum
from vhost.frontend import Frontend
from vhost.protocol import VirtioFeature
from vhost.virtio.net import NetFeature, NetHeader

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

FEATURES = VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES
# With it, Open vSwitch fills in the number of buffers, which without it has to be 1 and is left as it was.
MERGEABLE = FEATURES | NetFeature.MRG_RXBUF
RECEIVE, SEND = 0, 1  # queues
BUFFERS, ROOM = 64, 2048
HEADER = NetHeader().pack()
FRAMES, WINDOW = 600, 32
TEST_TYPE = b"\x88\xb5"  # IEEE 802, local experimental
STATIONS = bytes.fromhex("02000000aa01"), bytes.fromhex("02000000aa02")
PATIENCE = 60  # seconds
# Of a daemon: where split rings are it does not tell one that comes back, and packed ones it sets up anew.
LIVES = {"split": 1, "packed": 2}
ICMP = 1


class Station:
    """A network card of ours at a port of the switch."""

    def __init__(self, frontend: Frontend) -> None:
        self._send, self._receive = frontend.queue(SEND), frontend.queue(RECEIVE)
        for _ in range(BUFFERS):
            self._receive.submit(writable=ROOM)

    def send(self, *frames: bytes) -> None:
        """Sends frames, and waits until they are taken."""
        for frame in frames:
            self._send.submit(HEADER + frame)
        while self._send.in_flight:
            self._send.wait()

    def receive(self, timeout: float | None = None) -> bytes:
        """The next frame of these tests."""
        while True:
            data = self._receive.wait(timeout=timeout).data
            self._receive.submit(writable=ROOM)
            if data[len(HEADER) + 12 :][:2] == TEST_TYPE:
                return data[len(HEADER) :]


def traffic(dice: random.Random, source: bytes, target: bytes, count: int) -> list[bytes]:
    """Frames of all sizes; each begins with its number."""
    head = target + source + TEST_TYPE
    sizes = [60, 61, 1513, 1514, *(dice.randrange(60, 1515) for _ in range(count - 4))]
    return [head + struct.pack("!I", n) + dice.randbytes(size - 18) for n, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def switch(work: Path, logs: Path) -> Iterator[Switch]:
    folder = work / "ovs"
    folder.mkdir()
    with Switch(folder, logs) as switch:
        yield switch
        assert switch.process.running, switch.process.tail()


def known(sender: Station, receiver: Station, source: bytes) -> None:
    """The switch loses what comes while it takes up a port, and then learns where ``source`` is."""
    for n in range(PATIENCE):
        sender.send(b"\xff" * 6 + source + TEST_TYPE + n.to_bytes(46, "big"))
        try:
            while int.from_bytes(receiver.receive(timeout=1)[14:], "big") < n:
                pass
            return
        except TimeoutError:
            pass
    raise AssertionError(f"nothing from {source.hex()} arrives")


@pytest.mark.parametrize("kind", ["split", "packed"])
@met(OPEN_VSWITCH, deed="`dpdkvhostuserclient` serves two front-ends that listen, twice, {kind} rings")
def test_frames_pass_between_two_front_ends_that_listen(switch: Switch, work: Path, kind: str) -> None:
    paths = [work / f"{kind}{i}.sock" for i in (0, 1)]
    for i in (0, 1):
        switch.client(f"{kind}{i}", paths[i])
    wishes: dict[str, Any] = {"features": FEATURES, "queues": 2, "packed": kind == "packed"}
    dice = random.Random(kind)
    for _ in range(2):  # the switch connects again
        with (
            listen(paths[0], timeout=PATIENCE, **wishes) as one,
            listen(paths[1], timeout=PATIENCE, **wishes) as other,
        ):
            stations = Station(one), Station(other)
            for i in (0, 1):
                known(stations[i], stations[1 - i], STATIONS[i])
            for i in (0, 1):
                sent = traffic(dice, STATIONS[i], STATIONS[1 - i], FRAMES)
                for start in range(0, FRAMES, WINDOW):
                    window = sent[start : start + WINDOW]
                    stations[i].send(*window)
                    assert [stations[1 - i].receive() for _ in window] == window
        assert not any(path.exists() for path in paths)
    for i in (0, 1):
        switch.vsctl("del-port", f"{kind}{i}")


def ping(host: Host, mac: bytes, address: bytes, number: int) -> None:
    """A ping is answered."""
    text = struct.pack("!HH", 7, number) + bytes([number]) * 1000
    request = struct.pack("!BBH", 8, 0, 0) + text
    request = request[:2] + struct.pack("!H", checksum(request)) + request[4:]
    host.send_packet(mac, address, ICMP, request)
    answer = host.receive_packet(ICMP, lambda data: data[4:8] == text[:4])
    assert (answer[0], answer[4:], checksum(answer)) == (0, text, 0)


@pytest.mark.parametrize("ring", LIVES)
@met(OPEN_VSWITCH, deed="listens (server=1) for `vhost-net`, which answers pings, {ring} rings")
def test_vhost_net_connects_to_a_switch_that_listens(
    switch: Switch, work: Path, logs: Path, ring: str
) -> None:
    place, address = work / f"{ring}-net.sock", IPv4Address("10.0.2.1")
    with ExitStack() as stack:

        def start(life: int) -> Daemon:
            name, options = f"{ring}-net-{life}", ("--respond=10.0.2.0/24", "--quirk=packed-base-16")
            it = ours("vhost-net", *options, name=name, place=place, work=work, logs=logs, connect=True)
            return stack.enter_context(it)

        daemon = start(0)
        switch.server(f"{ring}-net", place, packed=ring == "packed")
        switch.client(f"{ring}-host", work / f"{ring}-host.sock")
        frontend = stack.enter_context(
            listen(work / f"{ring}-host.sock", timeout=PATIENCE, queues=2, features=MERGEABLE)
        )
        host = Host(frontend, STATIONS[0])
        host.address = IPv4Address("10.0.2.99").packed
        for life in range(LIVES[ring]):
            if life:
                daemon.kill()
                daemon = start(life)
            mac = resolved(host, frontend, address)
            for number in range(20):
                ping(host, mac, address.packed, number)
        daemon.finish()
        for name in ("host", "net"):
            switch.vsctl("del-port", f"{ring}-{name}")


def resolved(host: Host, frontend: Frontend, address: IPv4Address) -> bytes:
    """Asks until there is an answer: the switch loses what comes while it takes up a port."""
    question = b"\x00\x01\x08\x00\x06\x04\x00\x01" + host.mac + host.address + bytes(6) + address.packed
    for _ in range(PATIENCE):
        host.send(b"\xff" * 6, b"\x08\x06", question)
        try:
            frontend.queue(RECEIVE).wait(timeout=1)
        except TimeoutError:
            continue
        frontend.queue(RECEIVE).submit(writable=ROOM)
        return host.resolve(address)
    raise AssertionError(f"nobody answers for {address}")
