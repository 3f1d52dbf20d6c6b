# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Linux guests use the network cards that vhost-net serves, through QEMU's vhost-user netdev."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.lab import guest as guests
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import Guest
from tests.lab.kernel import Kernel

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

RING_PACKED = 34  # number of a feature's bit
RING = pytest.mark.parametrize("ring", ["split", "packed"])

# What udhcpc does with the address that it got.
LEASE = """\
#!/bin/sh
[ "$1" = bound ] && ifconfig "$interface" "$ip" netmask "$subnet" && echo "$ip $subnet $router $serverid"
"""


@contextmanager
def network(work: Path, logs: Path, name: str, *options: str, sockets: int = 1) -> Iterator[Daemon]:
    """A daemon, which must end in order."""
    with ours("vhost-net", *options, f"-c{sockets}", name=name, work=work, logs=logs) as daemon:
        yield daemon
        daemon.finish()
        assert not list(work.glob(f"{name}.sock*"))


def card(chardev: str, number: int, ring: str) -> tuple[str, ...]:
    """QEMU's arguments for a network card.

    :param chardev: QEMU's argument for the connection with the daemon, which has the id ``net``.
    :param number: last byte of its address.
    """
    packed = "on" if ring == "packed" else "off"
    # Without KVM, QEMU 7.2 comes to grief at MSI-X vectors of a card that is served by somebody else.
    device = f"virtio-net-pci,netdev=card,mac=52:54:00:00:00:{number:02x},packed={packed},vectors=0"
    return (
        *("-chardev", chardev, "-netdev", "vhost-user,id=card,chardev=net,queues=1"),
        *("-device", device),
    )


@contextmanager
def guest(kernel: Kernel, root: Path, logs: Path, daemon: Daemon, devices: Sequence[str]) -> Iterator[Guest]:
    """A guest, which must end in order, and QEMU without a word."""
    logs.mkdir()
    argv = (*guests.machine(kernel.image, root, memory=256, cpus=1), *devices)
    with Guest(argv, logs, witnesses=(daemon,)) as guest:
        yield guest
        assert guest.power_off() == 0, guest.process.tail()
        assert guest.process.output() == ""


def negotiated(guest: Guest) -> set[int]:
    """The numbers of the features of the guest's network card."""
    bits = guest.run("cat /sys/class/net/eth0/device/features")
    return {number for number, bit in enumerate(bits) if bit == "1"}


@RING
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
            said = it.run("ping -c 20 -i 0.1 -s 1400 10.0.2.1")
            assert "20 packets transmitted, 20 packets received, 0% packet loss" in said, said


def test_two_guests_on_a_switch(kernel: Kernel, root: Path, work: Path, logs: Path) -> None:
    """One has split rings, the other packed ones."""
    with network(work, logs, "switch", sockets=2) as daemon, ExitStack() as stack:
        ends = []
        for number, ring in enumerate(("split", "packed")):
            devices = card(f"socket,id=net,path={daemon.socket}{number}", number, ring)
            ends.append(stack.enter_context(guest(kernel, root, logs / f"switch-{ring}", daemon, devices)))
            ends[-1].run(f"ip address add 10.0.9.{1 + number}/24 dev eth0; ip link set eth0 up")
        assert RING_PACKED in negotiated(ends[1])
        for end, other in zip(ends, ("10.0.9.2", "10.0.9.1"), strict=True):
            said = end.run(f"ping -c 20 -i 0.1 -s 1400 {other}")
            assert "20 packets transmitted, 20 packets received, 0% packet loss" in said, said
