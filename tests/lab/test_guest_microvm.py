# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU's smallest machine: devices on virtio-mmio, whose drivers choose larger rings than QEMU has inflight
regions for."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab import guest as guests
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import QEMU, Guest
from tests.lab.kernel import LINUX, Kernel
from tests.lab.machine import vhost_user
from tests.lab.peers import met
from tests.lab.writers import faults, onwards, writing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

DISK_BYTES = 64 << 20
# With acpi, which tells the guest where the devices are; its second serial port is not the machine's own.
BOARD = "microvm,acpi=on"
PORT = ("-device", "isa-serial,chardev=commands,index=1,iobase=0x2f8,irq=3")


@met(
    QEMU, LINUX, deed="`vhost-blk` on a microvm: rings of 1024, inflight regions for 128, both kinds of ring"
)
def test_a_guest_has_its_disks(kernel: Kernel, root: Path, work: Path, logs: Path) -> None:
    with ExitStack() as stack:
        daemons: list[Daemon] = []
        devices: list[str] = []
        for ring in ("split", "packed"):
            image = work / f"{ring}.img"
            image.write_bytes(os.urandom(DISK_BYTES))
            daemon = stack.enter_context(ours("vhost-blk", "-b", image, name=ring, work=work, logs=logs))
            packed = "on" if ring == "packed" else "off"
            devices += vhost_user(f"vhost-user-blk,num-queues=1,packed={packed}", daemon.socket, ring)
            daemons.append(daemon)
        argv = guests.machine(kernel.image, root, memory=256, board=BOARD)
        argv += ["-global", "virtio-mmio.force-legacy=false", *PORT, *devices]
        guest = stack.enter_context(Guest(argv, logs, witnesses=daemons))
        with writing(guest, ("vda", "vdb")) as done:
            onwards(done)
        assert not faults(guest)
        assert guest.power_off() == 0
        for daemon in daemons:
            daemon.finish(known="ring 0: its 1024 entries have no place in the inflight region .* of 128: ")
