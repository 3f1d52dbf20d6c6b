# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guests with a network card that vhost-net serves, through QEMU's vhost-user netdev."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab import guest as guests
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import Guest
from tests.lab.kernel import Kernel

__all__ = ("card", "guest", "moved", "negotiated", "network")


@contextmanager
def network(
    work: Path, logs: Path, name: str, *options: str, sockets: int = 1, prefix: Sequence[str] = ()
) -> Iterator[Daemon]:
    """A daemon, which must end in order.

    :param sockets: it serves so many guests; with more than one, a number is behind the name of each.
    :param prefix: a command that runs it, and becomes it.
    """
    count = f"-c{sockets}"
    with ours("vhost-net", *options, count, name=name, work=work, logs=logs, prefix=prefix) as daemon:
        yield daemon
        daemon.finish()
        assert not list(work.glob(f"{name}.sock*"))


def card(chardev: str, number: int, ring: str, pairs: int = 1) -> tuple[str, ...]:
    """QEMU's arguments for a network card.

    :param chardev: QEMU's argument for the connection with the daemon, which has the id ``net``.
    :param number: last byte of its address.
    :param ring: ``split`` or ``packed``.
    :param pairs: of queues; the guest uses as many as it has CPUs.
    """
    packed = "on" if ring == "packed" else "off"
    # Without KVM, QEMU 7.2 comes to grief at MSI-X vectors of a card that is served by somebody else.
    device = f"virtio-net-pci,netdev=card,mac=52:54:00:00:00:{number:02x},packed={packed},vectors=0"
    return (
        *("-chardev", chardev, "-netdev", f"vhost-user,id=card,chardev=net,queues={pairs}"),
        *("-device", device + ",mq=on" * (pairs > 1)),
    )


@contextmanager
def guest(
    kernel: Kernel, root: Path, logs: Path, daemon: Daemon, devices: Sequence[str], *, cpus: int = 1
) -> Iterator[Guest]:
    """A guest, which must end in order, and QEMU without a word that matters."""
    logs.mkdir()
    argv = (*guests.machine(kernel.image, root, memory=256, cpus=cpus), *devices)
    with Guest(argv, logs, witnesses=(daemon,)) as guest:
        yield guest
        assert guest.power_off() == 0, guest.process.tail()
        # It says so of a back-end that has a configuration space for those who leave that to it.
        known = "vhost-user backend supports VHOST_USER_PROTOCOL_F_CONFIG but QEMU does not."
        assert not [line for line in guest.process.output().splitlines() if not line.endswith(known)]


def negotiated(guest: Guest) -> set[int]:
    """The numbers of the features of the guest's network card."""
    bits = guest.run("cat /sys/class/net/eth0/device/features")
    return {number for number, bit in enumerate(bits) if bit == "1"}


def moved(daemon: Daemon, queue: int) -> int:
    """Bytes that this queue of each of the guests has moved at least, as it said when it stopped."""
    counts = re.findall(rf"queue {queue}: \d+ frames of (\d+) bytes", daemon.output())
    assert counts, daemon.output()
    return min(map(int, counts))
