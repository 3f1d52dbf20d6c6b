# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A Linux guest on a 64-bit ARM machine uses all our devices, before and after a reboot."""

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.aarch64 import LINUX_AARCH64, QEMU_AARCH64, guest
from tests.lab.card import card
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import Guest
from tests.lab.machine import vhost_user
from tests.lab.peers import met

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

MIB = 1 << 20
DISK_BYTES = 8 * MIB


def use(guest: Guest, images: dict[str, Path], turn: int) -> None:
    """The guest writes each disk, and sees what is there; it pings and gets random bytes."""
    for disk, image in images.items():
        guest.run(f"dd if=/dev/urandom of=/dev/{disk} bs=64k seek={turn} count=16 oflag=direct status=none")
        seen = guest.run(f"dd if=/dev/{disk} bs=1M iflag=direct status=none | sha256sum").split()[0]
        assert seen == hashlib.sha256(image.read_bytes()).hexdigest()
    guest.run("ip address add 10.0.2.2/24 dev eth0; ip link set eth0 up")
    said = guest.run("ping -c 5 -i 0.1 -s 1400 10.0.2.1")
    assert "5 packets transmitted, 5 packets received, 0% packet loss" in said, said
    assert guest.run("dd if=/dev/hwrng bs=4096 count=1 iflag=fullblock status=none | wc -c") == "4096"


@met(
    QEMU_AARCH64,
    LINUX_AARCH64,
    deed="`vhost-blk`, `vhost-net`, `vhost-rng`: split and packed rings, a reboot",
)
def test_a_guest_uses_all_devices(work: Path, logs: Path) -> None:
    images = {"vda": work / "split.img", "vdb": work / "packed.img"}
    for image in images.values():
        image.write_bytes(os.urandom(DISK_BYTES))
    with ExitStack() as stack:

        def start(script: str, name: str, *options: str | os.PathLike[str]) -> Daemon:
            return stack.enter_context(ours(script, *options, name=name, work=work, logs=logs))

        disks = [start("vhost-blk", name, "-b", image) for name, image in images.items()]
        net, rng = start("vhost-net", "net", "--respond=10.0.2.0/24"), start("vhost-rng", "rng")
        daemons = (*disks, net, rng)
        devices = (
            *vhost_user("vhost-user-blk-pci,num-queues=1,packed=off", disks[0].socket, "split"),
            *vhost_user("vhost-user-blk-pci,num-queues=1,packed=on", disks[1].socket, "packed"),
            *vhost_user("vhost-user-rng-pci", rng.socket, "rng"),
            *card(f"socket,id=net,path={net.socket}", 1, "packed"),
        )
        with guest(devices, logs, work, daemons) as it:
            use(it, images, 0)
            it.reboot()
            use(it, images, 1)
        for daemon in daemons:
            daemon.finish()
