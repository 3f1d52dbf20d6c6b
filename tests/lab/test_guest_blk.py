# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""vhost-blk behind QEMU: what Linux sees of the disk, and what becomes of the data."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from tests.lab.guest import QEMU, CommandFailed
from tests.lab.kernel import LINUX
from tests.lab.machine import DISK_BYTES, DISK_SERIAL, QUEUES, READ_ONLY_BYTES, READ_ONLY_SERIAL, Machine
from tests.lab.peers import met
from tests.lab.prerequisites import tool

DEED = "`vhost-blk`: data, queues, discard, read-only"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), met(QEMU, LINUX, deed=DEED)]

MIB = 1 << 20


def image_digest(image: Path, start: int, n: int) -> str:
    """SHA-256 of `n` bytes of the image from `start`: the host's view."""
    with open(image, "rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(n)).hexdigest()


def guest_digest(machine: Machine, device: str, start: int, n: int) -> str:
    """SHA-256 of the same range of the guest's disk, past the guest's cache. Multiples of 64 KiB."""
    block = 65536
    read = f"dd if=/dev/{device} bs={block} skip={start // block} count={n // block} iflag=direct status=none"
    return machine.guest.run(f"{read} | sha256sum").split()[0]


def attribute(machine: Machine, device: str, name: str) -> str:
    return machine.guest.run(f"cat /sys/block/{device}/{name}")


def test_the_disk_is_what_the_command_line_says(machine: Machine) -> None:
    disk = machine.device()
    assert attribute(machine, disk, "serial") == DISK_SERIAL
    assert attribute(machine, disk, "ro") == "0"
    assert int(attribute(machine, disk, "size")) * 512 == DISK_BYTES
    assert attribute(machine, disk, "queue/write_cache") == "write back"
    assert int(attribute(machine, disk, "queue/discard_max_bytes")) > 0
    assert int(attribute(machine, disk, "queue/write_zeroes_max_bytes")) > 0
    assert len(machine.guest.run(f"ls /sys/block/{disk}/mq").split()) == QUEUES


def test_the_guest_reads_what_the_image_holds(machine: Machine) -> None:
    n = 4 * MIB
    for start in (0, 40 * MIB, DISK_BYTES - n):
        assert guest_digest(machine, machine.device(), start, n) == image_digest(machine.image, start, n)


def test_the_image_holds_what_the_guest_wrote(machine: Machine) -> None:
    target = f"of=/dev/{machine.device()} bs=65536 seek=160 conv=notrunc,fsync"
    machine.guest.run(f"dd if=/dev/urandom of=/tmp/data bs=65536 count=48; dd if=/tmp/data {target}")
    written = machine.guest.run("sha256sum < /tmp/data; rm /tmp/data").split()[0]
    assert image_digest(machine.image, 160 * 65536, 48 * 65536) == written


def test_every_queue_carries_requests(machine: Machine) -> None:
    disk = machine.device()
    for cpu in range(QUEUES):
        read = f"dd if=/dev/{disk} of=/dev/null bs=65536 count=64 skip={cpu * 64} iflag=direct"
        machine.guest.run(f"taskset -c {cpu} {read}")
    device = machine.guest.run(f"basename $(readlink /sys/block/{disk}/device)")
    counts = machine.guest.run(f"grep {device}-req /proc/interrupts").splitlines()
    assert len(counts) == QUEUES
    for line in counts:
        assert sum(int(count) for count in re.findall(r"\s(\d+)(?=\s)", line)) > 0, line


@met(QEMU, LINUX, deed="`vhost-blk`: a file system survives a reboot")
def test_a_file_system_survives_a_reboot(machine: Machine) -> None:
    disk = machine.device()
    machine.guest.run(f"mkfs.ext4 -q -F /dev/{disk} && mount /dev/{disk} /mnt", seconds=60)
    machine.guest.run(
        "cd /mnt && mkdir some && for i in 1 2 3 4 5 6 7 8; do"
        " dd if=/dev/urandom of=some/$i bs=$((i * 50001)) count=3 status=none; done"
        " && sha256sum some/* > sums && sync"
    )
    machine.guest.reboot()  # nothing is unmounted: the journal must be good enough
    machine.guest.run(f"mount /dev/{machine.device()} /mnt && cd /mnt && sha256sum -c sums")
    assert machine.guest.run("ls /mnt/some | wc -l") == "8"
    machine.guest.run("umount /mnt")
    check = subprocess.run([tool("e2fsck"), "-f", "-n", machine.image], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


@met(QEMU, LINUX, deed="`vhost-blk`: reset under load")
def test_a_reset_under_load_loses_nothing_that_was_flushed(machine: Machine) -> None:
    disk = machine.device()
    safe = f"of=/dev/{disk} bs=65536 seek=800 conv=notrunc,fsync"
    machine.guest.run(f"dd if=/dev/urandom of=/tmp/data bs=65536 count=32; dd if=/tmp/data {safe}")
    written = machine.guest.run("sha256sum < /tmp/data").split()[0]
    write = f"dd if=/dev/zero of=/dev/{disk} bs=65536 count=100 conv=notrunc oflag=direct"
    machine.guest.run(
        f"for start in 0 200 400 600; do (while {write} seek=$start; do :; done) > /dev/null 2>&1 & done"
    )
    machine.guest.reset()
    assert machine.disk.running
    assert guest_digest(machine, machine.device(), 800 * 65536, 32 * 65536) == written
    assert image_digest(machine.image, 800 * 65536, 32 * 65536) == written


def test_discarded_blocks_are_zero_and_give_their_space_back(machine: Machine) -> None:
    disk, start, n = machine.device(), 64 * MIB, 8 * MIB
    machine.guest.run(f"dd if=/dev/urandom of=/dev/{disk} bs=1M seek=64 count=8 conv=notrunc,fsync")
    before = machine.image.stat().st_blocks
    machine.guest.run(f"blkdiscard -o {start} -l {n} /dev/{disk}")
    zeroes = hashlib.sha256(bytes(n)).hexdigest()
    assert guest_digest(machine, disk, start, n) == zeroes
    assert image_digest(machine.image, start, n) == zeroes
    assert before - machine.image.stat().st_blocks >= n // 512


def test_a_read_only_disk_can_be_read_only(machine: Machine) -> None:
    disk = machine.device(READ_ONLY_SERIAL)
    before = image_digest(machine.read_only_image, 0, READ_ONLY_BYTES)
    assert attribute(machine, disk, "ro") == "1"
    assert attribute(machine, disk, "queue/discard_max_bytes") == "0"
    with pytest.raises(CommandFailed, match=r"not permitted|Read-only"):
        machine.guest.run(f"dd if=/dev/zero of=/dev/{disk} bs=4096 count=1 conv=notrunc,fsync")
    assert guest_digest(machine, disk, 0, READ_ONLY_BYTES) == before
    assert image_digest(machine.read_only_image, 0, READ_ONLY_BYTES) == before


@met(QEMU, LINUX, deed="`vhost-blk`: driver reloaded, device unbound and bound")
def test_the_driver_can_be_reloaded(machine: Machine) -> None:
    for _ in range(3):
        machine.guest.run("rmmod virtio_blk && insmod /modules/virtio_blk.ko")
        start = 16 * MIB
        assert guest_digest(machine, machine.device(), start, MIB) == image_digest(machine.image, start, MIB)


@met(QEMU, LINUX, deed="`vhost-blk`: driver reloaded, device unbound and bound")
def test_the_device_can_be_unbound_and_bound(machine: Machine) -> None:
    device = machine.guest.run(f"basename $(readlink /sys/block/{machine.device()}/device)")
    machine.guest.run(f"cd /sys/bus/virtio/drivers/virtio_blk; echo {device} > unbind; echo {device} > bind")
    start = 24 * MIB
    machine.guest.run(
        f"dd if=/dev/urandom of=/dev/{machine.device()} bs=1M seek=24 count=1 conv=notrunc,fsync"
    )
    assert guest_digest(machine, machine.device(), start, MIB) == image_digest(machine.image, start, MIB)
