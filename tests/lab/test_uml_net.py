# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""vhost-net behind user-mode Linux, whose drivers get our offer as it is, the control queue with it."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.lab.card import network
from tests.lab.peers import met
from tests.lab.uml import UML, Uml, UmlGuest, net, running

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

CTRL_VQ, GUEST_ANNOUNCE, MQ, RING_PACKED = 17, 21, 22, 34  # numbers of features' bits
RELOADS = 20
RING = pytest.mark.parametrize("ring", ["split", "packed"])


@contextmanager
def guests(
    uml: Uml, work: Path, logs: Path, name: str, *options: str, memory: tuple[int, ...] = (128,)
) -> Iterator[list[UmlGuest]]:
    """Guests with a network card each on one switch; the first is 10.0.2.2.

    :param memory: of each guest, MiB.
    """
    name = f"{name}-{uml.kernel.version}"
    with network(work, logs, name, *options, sockets=len(memory)) as daemon, ExitStack() as stack:
        booted = []
        for number, size in enumerate(memory):
            socket = daemon.socket if len(memory) == 1 else Path(f"{daemon.socket}{number}")
            it = running(uml, [net(socket)], logs / f"{name}-{number}", daemon, memory=size)
            booted.append(stack.enter_context(it))
            connect(booted[-1], number)
        yield booted


def connect(guest: UmlGuest, number: int) -> None:
    guest.run(
        f"ip link set eth0 address 52:54:00:00:00:0{number}"
        f" && ip address add 10.0.2.{2 + number}/24 dev eth0 && ip link set eth0 up"
    )


def ping(guest: UmlGuest, address: str, count: int = 10) -> None:
    """All of some pings are answered."""
    said = guest.run(f"ping -c {count} -i 0.02 -s 1400 {address}")
    assert f"{count} packets transmitted, {count} packets received, 0% packet loss" in said, said


@RING
@met(UML, deed="`vhost-net`: pings, each kind of ring")
def test_the_responder_answers(uml: Uml, work: Path, logs: Path, ring: str) -> None:
    offer = f"--features={'+' if ring == 'packed' else '-'}packed"
    with guests(uml, work, logs, ring, "--respond=10.0.2.0/24", offer) as (guest,):
        features = guest.features("eth0")
        assert features[CTRL_VQ]
        assert features[GUEST_ANNOUNCE]
        assert features[RING_PACKED] == (ring == "packed")
        ping(guest, "10.0.2.1")


@pytest.fixture(scope="module")
def two(uml: Uml, work: Path, logs: Path) -> Iterator[tuple[UmlGuest, UmlGuest]]:
    """Two guests on a switch with the responder, their cards with four pairs of queues."""
    options = ("--respond=10.0.2.0/24", "--num-queues=4")
    with guests(uml, work, logs, "two", *options, memory=(64, 64)) as (guest, other):
        yield guest, other


@met(UML, deed="`vhost-net`: control queue: stations, groups and VLANs that are received")
def test_frames_are_received_that_are_asked_for(two: tuple[UmlGuest, UmlGuest]) -> None:
    guest, other = two
    other.run("arp -s 10.0.2.77 52:54:00:00:00:77; ip route add 224.0.0.0/4 dev eth0")

    def received(address: str) -> bool:
        # Whether frames to an address come; the last of them are answered anyway.
        count = "cat /sys/class/net/eth0/statistics/rx_bytes"
        before = int(guest.run(count))
        other.run(f"ping -i 0.02 -s 1400 {address} > /dev/null & sleep 0.3; kill $!")
        ping(other, "10.0.2.2", 1)
        return int(guest.run(count)) - before > 5 * 1400

    assert not received("10.0.2.77")
    guest.run("ifconfig eth0 promisc")
    assert received("10.0.2.77")
    guest.run("ifconfig eth0 -promisc")
    assert not received("10.0.2.77")

    assert received("224.0.0.1")
    assert not received("224.0.0.77")
    guest.run("ifconfig eth0 allmulti")
    assert received("224.0.0.77")
    guest.run("ifconfig eth0 -allmulti")
    assert not received("224.0.0.77")

    vlan = "ip link add link eth0 name vlan5 type vlan id 5"
    for number, end in enumerate((guest, other)):
        end.run(f"{vlan} && ip address add 10.0.5.{2 + number}/24 dev vlan5 && ip link set vlan5 up")
    ping(other, "10.0.5.2")
    guest.run("ip link del vlan5")
    other.run("arp -s 10.0.5.2 ff:ff:ff:ff:ff:ff")
    assert not received("10.0.5.2")


def pairs(guest: UmlGuest) -> int:
    """How many pairs of queues are in use, as ethtool says."""
    return int(re.findall(r"^Combined:\s+(\d+)$", guest.tool("ethtool -l eth0"), re.MULTILINE)[-1])


@met(UML, deed="`vhost-net`: control queue: pairs of queues in use, address")
def test_the_control_queue_is_served(two: tuple[UmlGuest, UmlGuest]) -> None:
    guest, other = two
    assert guest.features("eth0")[MQ]
    assert pairs(guest) == 1
    for wanted in (4, 2, 3):
        guest.tool(f"ethtool -L eth0 combined {wanted}")
        assert pairs(guest) == wanted
        ping(guest, "10.0.2.1")
        ping(guest, "10.0.2.3")
    # as the address is another one, others have to ask for it
    other.run("ip neigh flush dev eth0")
    guest.run("ip link set eth0 address 52:54:00:00:00:42")
    ping(other, "10.0.2.2")


BYTE, BLOCK = 0xA5, 1 << 20
# In the guest: uses all the memory that is free, from what was freed last on.
FILL = """\
free=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
cat $(yes /tmp/block | head -n $((free - 6))) > /tmp/filled
"""


@met(UML, deed="`vhost-net`: driver reloaded under traffic, its memory in use for something else")
def test_nothing_is_written_behind_the_drivers_back(uml: Uml, work: Path, logs: Path) -> None:
    """The driver goes and comes under a flood of frames. Its rings and buffers become a file meanwhile."""
    with guests(uml, work, logs, "reloads", memory=(64, 128)) as (guest, other):
        guest.run(f"head -c {BLOCK} /dev/zero | tr '\\0' '\\{BYTE:o}' > /tmp/block")
        guest.run("mount -o remount,size=100% /tmp")
        other.run("arp -s 10.0.2.77 52:54:00:00:00:00")  # an address to which nobody answers
        # A group of processes, and again and again: a ping ends when there is no memory for it.
        flood = "while :; do ping -i 0.001 -s 20000 10.0.2.77; done > /dev/null 2>&1"
        other.run(f"setsid sh -c 'echo $$ > /tmp/flood; {flood}' &")

        def flows(frames: int, before: str = "true") -> None:
            # So many more frames have been sent to the guest.
            count = "read n < /sys/class/net/eth0/statistics/tx_packets"
            other.run(f"{before}; {count}; end=$((n + {frames})); while [ $n -lt $end ]; do {count}; done")

        for turn in range(RELOADS):
            flows(100)
            # Every other time the driver goes while none come: the first of those later on meet the file.
            if turn % 2:
                other.run("kill -STOP -$(cat /tmp/flood)")
            size = guest.run(f"rmmod virtio_net\n{FILL}stat -c %s /tmp/filled")
            assert int(size) > 8 * BLOCK
            flows(1000, "kill -CONT -$(cat /tmp/flood)")
            others = guest.run(f"tr -d '\\{BYTE:o}' < /tmp/filled | wc -c; rm /tmp/filled")
            assert others == "0", f"in turn {turn} {others} bytes were written"
            guest.run("insmod /modules/virtio_net.ko")
            connect(guest, 0)
            ping(other, "10.0.2.2", 2)
