# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest moves to another QEMU and on while it writes and pings, with rings of both kinds; each place has a
daemon of ours for each device.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.lab.card import card
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import QEMU, Guest, machine
from tests.lab.kernel import LINUX, Kernel
from tests.lab.machine import vhost_user
from tests.lab.migration import migrate
from tests.lab.peers import met
from tests.lab.writers import faults, onwards, writing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

DISK_BYTES = 16 << 20
WRITTEN_BYTES = 4 << 20  # from the start of a disk, at most
MOVES = 2
PINGS = "grep -c 'bytes from' /tmp/pings"

# What lies in the guest's memory was put there by the device alone: none of it may stay behind. Each round
# looks at it some time later.
READER = f"""\
while [ ! -e /tmp/$1.read ]; do
    echo 1 > /proc/sys/vm/drop_caches
    dd if=/dev/$1 bs=1M skip={WRITTEN_BYTES >> 20} of=/dev/null
    sleep 1
    dd if=/dev/$1 bs=1M skip={WRITTEN_BYTES >> 20} | sha256sum >> /tmp/$1.sums
done
touch /tmp/$1.ended
"""


@contextmanager
def reading(guest: Guest, disk: str, image: Path) -> Iterator[None]:
    """The part of a disk that nobody writes comes into the guest's memory again and again, and is right."""
    sum_ = hashlib.sha256(image.read_bytes()[WRITTEN_BYTES:]).hexdigest()
    guest.run(f"cat > /tmp/reader << 'end'\n{READER}end")
    guest.run(f"sh /tmp/reader {disk} > /tmp/{disk}.reader 2>&1 &")
    yield
    guest.run(f"touch /tmp/{disk}.read; while [ ! -e /tmp/{disk}.ended ]; do sleep 0.1; done", 60)
    assert guest.run(f"cut -c -64 /tmp/{disk}.sums | sort | uniq") == sum_


@met(QEMU, LINUX, deed="`vhost-blk`, `vhost-net`: two live migrations under I/O, split and packed rings")
def test_a_guest_moves_while_it_writes(kernel: Kernel, root: Path, work: Path, logs: Path) -> None:
    images = {ring: work / f"{ring}.img" for ring in ("split", "packed")}
    for image in images.values():
        image.write_bytes(os.urandom(DISK_BYTES))

    # By default the kernel clears pages before a device gets them, and the emulator knows of that.
    system = machine(kernel.image, root, memory=256, arguments="init_on_alloc=0")

    def place(life: int, stack: ExitStack) -> tuple[list[Daemon], list[str], Path]:
        # The daemons of one place, QEMU's command line, and a folder for its logs.
        def start(script: str, name: str, *options: str | os.PathLike[str]) -> Daemon:
            return stack.enter_context(ours(script, *options, name=f"{name}-{life}", work=work, logs=logs))

        daemons, devices = [], []
        for ring, image in images.items():
            # Both places have the image open for a moment; QEMU sees to it that only one uses it.
            disk = start("vhost-blk", ring, "--no-lock", "--num-queues=2", "-b", image)
            packed = "on" if ring == "packed" else "off"
            devices += vhost_user(f"vhost-user-blk-pci,num-queues=2,packed={packed}", disk.socket, ring)
            daemons.append(disk)
        net = start("vhost-net", "net", "--respond=10.0.2.0/24")
        devices += card(f"socket,id=net,path={net.socket}", 1, "packed")
        folder = logs / str(life)
        folder.mkdir()
        return [*daemons, net], [*system, *devices], folder

    with ExitStack() as stack:
        daemons, argv, folder = place(0, stack)
        guest = stack.enter_context(Guest(argv, folder, daemons))
        guest.run("ip address add 10.0.2.2/24 dev eth0; ip link set eth0 up")
        guest.run("ping -i 0.1 10.0.2.1 > /tmp/pings 2>&1 &")
        with (
            reading(guest, "vda", images["split"]),
            reading(guest, "vdb", images["packed"]),
            writing(guest, ("vda", "vdb")) as done,
        ):
            for life in range(1, MOVES + 1):
                onwards(done)
                old, (daemons, argv, folder) = daemons, place(life, stack)
                migrate(guest, argv, folder, daemons, socket=work / "migration.sock")
                for daemon in old:
                    daemon.finish()
                pings = int(guest.run(PINGS))
                guest.run(f"while [ $({PINGS}) -lt {pings + 5} ]; do sleep 0.1; done", 60)
            onwards(done)
        assert faults(guest) == ""
        assert guest.power_off() == 0, guest.process.tail()
        assert guest.process.output() == ""
        for daemon in daemons:
            daemon.finish()
