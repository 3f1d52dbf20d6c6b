# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""vhost-blk is killed while a guest writes, and started again: QEMU gives it the inflight region back."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.lab import guest as guests
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import QEMU, Guest
from tests.lab.kernel import LINUX, Kernel
from tests.lab.machine import reconnecting
from tests.lab.peers import met

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

KILLS = 6
WRITERS = 4
DISK_BYTES = 64 << 20
BLOCK, BLOCKS = 16384, 32  # of a write, and of a writer's part of the disk

# Each round writes other data than the one before, and reads back what it wrote.
WRITER = f"""\
n=0
while [ ! -e /tmp/stop ]; do
    n=$((n + 1))
    skip=$((n % 64)) seek=$(($1 * {BLOCKS}))
    block="bs={BLOCK} count={BLOCKS}"
    dd if=/tmp/data of=/dev/vda $block skip=$skip seek=$seek conv=notrunc oflag=direct || exit 1
    dd if=/tmp/data of=/tmp/want.$1 $block skip=$skip || exit 1
    dd if=/dev/vda of=/tmp/have.$1 $block skip=$seek iflag=direct || exit 1
    cmp /tmp/want.$1 /tmp/have.$1 || exit 1
done
echo "good $n"
"""


@contextmanager
def writing(guest: Guest) -> Iterator[Callable[[], int]]:
    """Writers run in the guest. Gives what counts the requests they had done; in the end all must be well."""

    def done() -> int:
        fields = guest.run("cat /sys/block/vda/stat").split()
        return int(fields[0]) + int(fields[4])

    guest.run(f"dd if=/dev/urandom of=/tmp/data bs={BLOCK} count={64 + BLOCKS}")
    guest.run(f"cat > /tmp/writer << 'end'\n{WRITER}end")
    for index in range(WRITERS):
        guest.run(f"sh /tmp/writer {index} > /tmp/writer.{index} 2>&1 &")
    yield done
    guest.run("touch /tmp/stop")
    guest.run(f"while [ $(tail -qn 1 /tmp/writer.* | grep -c good) -lt {WRITERS} ]; do sleep 0.1; done", 60)


def onwards(done: Callable[[], int]) -> None:
    before, deadline = done(), time.monotonic() + 60
    while done() <= before + WRITERS:
        assert time.monotonic() < deadline, "no request is answered any more"


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
        faults = guest.run("dmesg | grep -ciE 'virtio_blk.*(head|error)|I/O error|blk_update' || true")
        assert faults == "0", guest.run("dmesg | tail -50")
        assert guest.power_off() == 0
        daemon.finish()
