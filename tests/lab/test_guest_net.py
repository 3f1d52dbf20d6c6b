# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Linux guests use the network cards that vhost-net serves: by themselves, and with each other."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.card import card, guest, moved, negotiated, network
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import QEMU, Guest, machine
from tests.lab.kernel import LINUX, Kernel
from tests.lab.machine import reconnecting
from tests.lab.peers import met
from tests.lab.transfer import AMOUNT, Source, connect, listen, result, send, take

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300 + 4 * AMOUNT)]

CTRL_VQ, GUEST_ANNOUNCE, MQ, RING_PACKED = 17, 21, 22, 34  # numbers of features' bits
KILLS = 4
RING = pytest.mark.parametrize("ring", ["split", "packed"])

# What udhcpc does with the address that it got.
LEASE = """\
#!/bin/sh
[ "$1" = bound ] && ifconfig "$interface" "$ip" netmask "$subnet" && echo "$ip $subnet $router $serverid"
"""


def ping(guest: Guest, address: str) -> None:
    """All of some pings are answered."""
    said = guest.run(f"ping -c 20 -i 0.1 -s 1400 {address}")
    assert "20 packets transmitted, 20 packets received, 0% packet loss" in said, said


def answered(guest: Guest) -> None:
    """Some more of the pings in the background are answered."""
    count = "grep -c 'bytes from' /tmp/pings"
    guest.run(f"end=$(($({count}) + 5)); while [ $({count}) -lt $end ]; do sleep 0.1; done", 60)


@RING
@met(QEMU, LINUX, deed="`vhost-net`: DHCP and pings, {ring} rings")
def test_a_guest_gets_an_address_and_pings(
    kernel: Kernel, root: Path, work: Path, logs: Path, ring: str
) -> None:
    name = f"respond-{ring}"
    with network(work, logs, name, "--respond=10.0.2.0/24") as daemon:
        devices = card(f"socket,id=net,path={daemon.socket}", 1, ring)
        with guest(kernel, root, logs / name, daemon, devices) as it:
            assert (RING_PACKED in negotiated(it)) == (ring == "packed")
            it.run(f"cat > /tmp/lease << 'end'\n{LEASE}end\nchmod +x /tmp/lease; ip link set eth0 up")
            lease = it.run("udhcpc -i eth0 -n -q -s /tmp/lease").splitlines()
            assert "10.0.2.2 255.255.255.0 10.0.2.1 10.0.2.1" in lease, lease
            assert "10.0.2.2/24" in it.run("ip -o -4 address show dev eth0")
            ping(it, "10.0.2.1")


def send_by(guest: Guest, pair: int, pairs: int) -> None:
    """Whatever CPU sends does so by this pair of queues; there are as many CPUs as pairs."""
    guest.run("cd /sys/class/net/eth0/queues; for queue in tx-*; do echo 0 > $queue/xps_cpus; done")
    guest.run(f"echo {(1 << pairs) - 1:x} > /sys/class/net/eth0/queues/tx-{pair}/xps_cpus")


@pytest.mark.parametrize("pairs", [1, 2])
@met(QEMU, LINUX, deed="`vhost-net`: two guests on the switch, queue pairs: {pairs}")
def test_two_guests_on_a_switch(kernel: Kernel, root: Path, work: Path, logs: Path, pairs: int) -> None:
    """One has split rings, the other packed ones; each sends a stream by each pair of its queues."""
    source, name = Source.make(work), f"switch-{pairs}"
    wanted = source.digest()
    addresses = ("10.0.9.1", "10.0.9.2")
    with network(work, logs, name, f"--num-queues={pairs}", sockets=2) as daemon:
        with ExitStack() as stack:
            ends = []
            for number, ring in enumerate(("split", "packed")):
                devices = card(f"socket,id=net,path={daemon.socket}{number}", number, ring, pairs)
                folder = logs / f"{name}-{ring}"
                it = guest(kernel, root, folder, daemon, (*devices, *source.devices), cpus=pairs)
                ends.append(stack.enter_context(it))
                ends[-1].run(f"ip address add {addresses[number]}/24 dev eth0; ip link set eth0 up")
                assert (MQ in negotiated(ends[-1])) == (pairs > 1)
            assert RING_PACKED in negotiated(ends[1])
            for turn in range(pairs):
                for number, end in enumerate(ends):
                    if pairs > 1:
                        send_by(end, (turn + number) % pairs, pairs)
                    ping(end, addresses[1 - number])
                    listen(end, 5000 + turn, take(f"/tmp/{turn}"))
                for number, end in enumerate(ends):
                    connect(end, addresses[1 - number], 5000 + turn, send(source))
                for end in ends:
                    assert result(end, f"/tmp/{turn}") == wanted
        for queue in range(2 * pairs):
            assert moved(daemon, queue) > source.size


@met(QEMU, LINUX, deed="`vhost-net`: four pairs of queues, control queue in QEMU")
def test_four_pairs_in_use(kernel: Kernel, root: Path, work: Path, logs: Path) -> None:
    """QEMU has the control queue, and the guest as many pairs as it is given and has CPUs."""
    with network(work, logs, "pairs", "--respond=10.0.2.0/24", "--num-queues=4") as daemon:
        devices = card(f"socket,id=net,path={daemon.socket}", 1, "split", 4)
        with guest(kernel, root, logs / "pairs", daemon, devices, cpus=4) as it:
            assert {CTRL_VQ, MQ, GUEST_ANNOUNCE} <= negotiated(it)
            assert len(it.run("ls -d /sys/class/net/eth0/queues/rx-*").splitlines()) == 4
            it.run("ip address add 10.0.2.2/24 dev eth0; ip link set eth0 up")
            for pair in range(4):
                send_by(it, pair, 4)
                ping(it, "10.0.2.1")
        assert "ring 7 started" in daemon.output()
        assert "ring 8 started" not in daemon.output()
    for queue in range(8):
        assert moved(daemon, queue) > 20 * 1400


@pytest.mark.parametrize("pairs", [1, 2])
@met(QEMU, LINUX, deed="`vhost-net` killed between pings, queue pairs: {pairs}")
def test_a_guest_keeps_its_network(kernel: Kernel, root: Path, work: Path, logs: Path, pairs: int) -> None:
    """The daemon is killed and started again, QEMU connects again, and pings are answered again."""
    path, folder = work / f"killed-{pairs}.sock", logs / f"killed-{pairs}"
    folder.mkdir()
    with ExitStack() as stack:

        def start(life: int) -> Daemon:
            options = ("--respond=10.0.2.0/24", f"--num-queues={pairs}")
            name = f"killed-{pairs}-{life}"
            return stack.enter_context(
                ours("vhost-net", *options, work=work, logs=logs, name=name, place=path)
            )

        daemon = start(0)
        # Packed rings do not do: QEMU alone cannot know where the daemon was in them.
        devices = card(reconnecting(path, "net"), 1, "split", pairs)
        argv = (*machine(kernel.image, root, memory=256, cpus=pairs), *devices)
        guest = stack.enter_context(Guest(argv, folder, witnesses=(daemon,)))
        guest.run("ip address add 10.0.2.2/24 dev eth0; ip link set eth0 up")
        guest.run("ping -i 0.1 10.0.2.1 > /tmp/pings 2>&1 &")
        for life in range(1, KILLS + 1):
            answered(guest)
            daemon.kill()
            daemon = start(life)
        answered(guest)
        ping(guest, "10.0.2.1")
        assert guest.power_off() == 0
        daemon.finish()
