# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""vhost-blk is killed while a guest writes, and started again: QEMU gives it the inflight region back."""

import os
import random
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from tests.lab import guest as guests
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import QEMU, Guest
from tests.lab.kernel import LINUX, Kernel
from tests.lab.machine import reconnecting
from tests.lab.peers import met
from tests.lab.writers import faults, onwards, writing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

KILLS = 6
DISK_BYTES = 64 << 20


@pytest.mark.parametrize("io", ["map", "sync", "auto"])
@pytest.mark.parametrize("ring", ["split", "packed"])
@met(QEMU, LINUX, deed="`vhost-blk` killed while four write, {ring} ring")
def test_a_guest_does_not_notice(
    kernel: Kernel, root: Path, work: Path, logs: Path, ring: str, io: str
) -> None:
    image, path = work / f"{ring}-{io}.img", work / "killed.sock"
    image.write_bytes(os.urandom(DISK_BYTES))
    dice = random.Random(f"{ring} {io}")

    def start(life: int) -> AbstractContextManager[Daemon]:
        name = f"{ring}-{io}-{life}"
        return ours("vhost-blk", f"--io={io}", "-b", image, work=work, logs=logs, name=name, place=path)

    def devices() -> tuple[str, ...]:
        packed = "on" if ring == "packed" else "off"
        device = f"vhost-user-blk-pci,chardev=disk,num-queues=1,packed={packed}"
        return "-chardev", reconnecting(path, "disk"), "-device", device

    with ExitStack() as stack:
        daemon = stack.enter_context(start(0))
        guest = stack.enter_context(
            Guest((*guests.machine(kernel.image, root), *devices()), logs, witnesses=(daemon,))
        )
        with writing(guest) as done:
            for life in range(1, KILLS + 1):
                onwards(done)
                time.sleep(dice.random() / 4)
                daemon.kill()
                assert not daemon.complaints()
                daemon = stack.enter_context(start(life))
            onwards(done)
        assert not faults(guest)
        assert guest.power_off() == 0
        daemon.finish()
