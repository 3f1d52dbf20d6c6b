# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One guest is stopped and continued, gets and loses devices while it runs, and is reset again and again."""

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemons import Daemon, ours
from tests.lab.guest import QEMU, Guest, machine
from tests.lab.kernel import LINUX, Kernel
from tests.lab.machine import vhost_user
from tests.lab.peers import met
from tests.lab.writers import onwards, writing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

DISK_BYTES = 4 << 20
STOPS, PLUGS, RESETS = 10, 3, 8


@dataclass(frozen=True, slots=True)
class Rig:
    """The guest, and sockets of devices that it may get."""

    guest: Guest
    image: Path
    disk: Path
    card: Path


@pytest.fixture(scope="module")
def rig(kernel: Kernel, root: Path, work: Path, logs: Path) -> Iterator[Rig]:
    image, spare = work / "disk.img", work / "spare.img"
    for file in (image, spare):
        file.write_bytes(os.urandom(DISK_BYTES))
    with ExitStack() as stack:

        def start(script: str, name: str, *options: str | os.PathLike[str]) -> Daemon:
            return stack.enter_context(ours(script, *options, name=name, work=work, logs=logs))

        split = start("vhost-blk", "split", "--num-queues=2", "-b", image)
        plugged = start("vhost-blk", "plugged", "-b", spare)
        net = start("vhost-net", "net", "--respond=10.0.2.0/24")
        daemons = (split, plugged, net)
        devices = (
            *vhost_user("vhost-user-blk-pci,num-queues=2", split.socket, "disk"),
            *("-device", "pcie-root-port,id=port0,chassis=1", "-device", "pcie-root-port,id=port1,chassis=2"),
        )
        argv = (*machine(kernel.image, root, memory=256), *devices)
        guest = stack.enter_context(Guest(argv, logs, daemons))
        yield Rig(guest, spare, plugged.socket, net.socket)
        if not guest.lost:
            assert guest.power_off() == 0, guest.process.tail()
            for daemon in daemons:
                daemon.finish()


@met(QEMU, LINUX, deed="`vhost-blk`: stopped and continued ten times under I/O")
def test_a_guest_is_stopped_and_continued(rig: Rig) -> None:
    with writing(rig.guest) as done:
        for _ in range(STOPS):
            onwards(done)
            rig.guest.qmp.execute("stop")
            rig.guest.qmp.execute("cont")
        onwards(done)


def plug(guest: Guest, name: str, socket: Path, **device: Any) -> None:
    """A new connection with a backend, and a device for it."""
    address = {"type": "unix", "data": {"path": str(socket)}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    guest.qmp.execute("chardev-add", id=name, backend=backend)
    if device["driver"] == "virtio-net-pci":
        guest.qmp.execute("netdev_add", type="vhost-user", id=device["netdev"], chardev=name)
    guest.qmp.execute("device_add", id=f"{name}-device", **device)


def unplug(guest: Guest, name: str) -> None:
    """The guest gives the device back."""
    guest.qmp.execute("device_del", id=f"{name}-device")
    guest.qmp.await_event("DEVICE_DELETED", device=f"{name}-device")


@met(QEMU, LINUX, deed="`vhost-blk`: plugged and unplugged three times, {ring} ring")
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_a_disk_is_plugged_and_unplugged(rig: Rig, ring: str) -> None:
    options = {"num-queues": 1, "packed": ring == "packed", "bus": "port0"}
    for turn in range(PLUGS):
        plug(rig.guest, "spare", rig.disk, driver="vhost-user-blk-pci", chardev="spare", **options)
        rig.guest.run("while [ ! -e /dev/vdb ]; do sleep 0.1; done")
        rig.guest.run(f"dd if=/dev/urandom of=/dev/vdb bs=1M seek={turn} count=1 oflag=direct")
        seen = rig.guest.run("dd if=/dev/vdb bs=1M iflag=direct status=none | sha256sum").split()[0]
        assert seen == hashlib.sha256(rig.image.read_bytes()).hexdigest()
        unplug(rig.guest, "spare")
        rig.guest.qmp.execute("chardev-remove", id="spare")
        rig.guest.run("while [ -e /dev/vdb ]; do sleep 0.1; done")


@met(QEMU, LINUX, deed="`vhost-net`: plugged and unplugged three times, {ring} rings")
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_a_card_is_plugged_and_unplugged(rig: Rig, ring: str) -> None:
    options = {"vectors": 0, "packed": ring == "packed", "bus": "port1"}
    for _ in range(PLUGS):
        plug(rig.guest, "card", rig.card, driver="virtio-net-pci", netdev="net", **options)
        rig.guest.run("while [ ! -e /sys/class/net/eth0 ]; do sleep 0.1; done")
        rig.guest.run("ip address add 10.0.2.2/24 dev eth0; ip link set eth0 up")
        rig.guest.run("ping -c 5 -i 0.1 10.0.2.1")
        unplug(rig.guest, "card")
        rig.guest.qmp.execute("netdev_del", id="net")  # and its connection
        rig.guest.run("while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done")


@met(QEMU, LINUX, deed="`vhost-blk`: a storm of resets, wherever in its boot each finds the guest")
def test_a_storm_of_resets(rig: Rig) -> None:
    dice = random.Random(1)
    rig.guest.run("(while dd if=/dev/vda of=/dev/null bs=64k iflag=direct; do :; done) > /dev/null 2>&1 &")
    rig.guest.storm(RESETS, iter(lambda: dice.uniform(0, 3), None))
    with writing(rig.guest) as done:
        onwards(done)
