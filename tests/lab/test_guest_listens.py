# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU listens (server=on), and our daemons connect to it: started first, or again when they were killed."""

import hashlib
import os
import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab import guest as guests
from tests.lab.card import card
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import QEMU, Guest
from tests.lab.kernel import LINUX, Kernel
from tests.lab.peers import met
from tests.lab.writers import faults, onwards, writing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

DISK_BYTES = 64 << 20
KILLS = 4
RANDOM = "dd if=/dev/hwrng bs=1024 count=1 iflag=fullblock status=none | wc -c"
PING = "ping -c 5 -i 0.1 10.0.2.1"


@met(QEMU, LINUX, deed="listens (server=on) for all three daemons, for disk and card again after kills")
def test_daemons_connect_to_a_machine_that_listens(
    kernel: Kernel, root: Path, work: Path, logs: Path
) -> None:
    image, dice = work / "disk.img", random.Random(1)
    image.write_bytes(os.urandom(DISK_BYTES))
    options = {
        "vhost-blk": ("-b", str(image)),
        "vhost-rng": (),
        "vhost-net": ("--respond=10.0.2.0/24",),
    }
    path = {script: work / f"{script}.sock" for script in options}
    lives = dict.fromkeys(options, 0)

    def chardev(script: str, name: str) -> str:
        return f"socket,id={name},path={path[script]},server=on"

    with ExitStack() as stack:

        def start(script: str) -> Daemon:
            lives[script] += 1
            name = f"{script}-{lives[script]}"
            it = ours(
                script, *options[script], work=work, logs=logs, name=name, place=path[script], connect=True
            )
            return stack.enter_context(it)

        daemons = {script: start(script) for script in options}
        devices = (
            *("-chardev", chardev("vhost-blk", "disk")),
            *("-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"),
            *("-chardev", chardev("vhost-rng", "rng"), "-device", "vhost-user-rng-pci,chardev=rng"),
            *card(chardev("vhost-net", "net"), 1, "split"),
        )
        argv = (*guests.machine(kernel.image, root, memory=256), *devices)
        guest = stack.enter_context(Guest(argv, logs, witnesses=tuple(daemons.values())))
        digest = guest.run("sha256sum /dev/vda", seconds=60).split()[0]
        assert digest == hashlib.sha256(image.read_bytes()).hexdigest()
        assert guest.run(RANDOM) == "1024"
        guest.run("ip address add 10.0.2.2/24 dev eth0; ip link set eth0 up")
        assert " 0% packet loss" in guest.run(PING)

        with writing(guest) as done:
            for _ in range(KILLS):
                onwards(done)
                time.sleep(dice.random() / 4)
                daemons["vhost-blk"].kill()
                daemons["vhost-blk"] = start("vhost-blk")
            onwards(done)
        # Not that of the random numbers: QEMU neither negotiates with it again nor shares memory with it.
        daemons["vhost-net"].kill()
        daemons["vhost-net"] = start("vhost-net")
        assert " 0% packet loss" in guest.run(f"until {PING} -c 1 > /tmp/one; do sleep 0.1; done; {PING}")
        assert not faults(guest)
        assert guest.power_off() == 0, guest.process.tail()
        # They try again, until they are told to end.
        for daemon in daemons.values():
            daemon.finish()
