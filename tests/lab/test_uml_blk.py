# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""vhost-blk behind user-mode Linux, whose drivers get our offer as it is."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.daemons import Daemon, ours
from tests.lab.peers import met
from tests.lab.prerequisites import tool
from tests.lab.uml import UML, Uml, UmlGuest, blk, running

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

RING_PACKED = 34  # number of the feature's bit
MIB = 1 << 20
DISK_BYTES = 64 * MIB
RELOADS = 3


@dataclass(frozen=True, slots=True)
class Disk:
    """A guest, its disk, full of random bytes at first, and the daemon and the image behind that."""

    guest: UmlGuest
    daemon: Daemon
    image: Path

    def read(self, start: int, n: int) -> str:
        """SHA-256 of bytes of the guest's disk, past the guest's cache. Multiples of a MiB."""
        part = f"bs={MIB} skip={start // MIB} count={n // MIB}"
        return self.guest.run(f"dd if=/dev/vda {part} iflag=direct status=none | sha256sum").split()[0]

    def write(self, start: int, n: int) -> str:
        """Writes random bytes and flushes them. Multiples of a MiB.

        :returns: their SHA-256.
        """
        part = f"bs={MIB} seek={start // MIB} count={n // MIB} conv=notrunc,fsync status=none"
        self.guest.run(f"head -c {n} /dev/urandom > /tmp/data; dd if=/tmp/data of=/dev/vda {part}")
        return self.guest.run("sha256sum /tmp/data; rm /tmp/data").split()[0]

    def holds(self, start: int, n: int) -> str:
        """SHA-256 of bytes of the image."""
        with open(self.image, "rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(n)).hexdigest()


@pytest.fixture(scope="module", params=["split", "packed"])
def disk(uml: Uml, work: Path, logs: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    image, name = work / "disk.img", f"{uml.kernel.version}-{request.param}"
    image.write_bytes(os.urandom(DISK_BYTES))
    offer = "+packed" if request.param == "packed" else "-packed"
    options = ("--blk-file", image, f"--features={offer}")
    with ours("vhost-blk", *options, work=work, logs=logs, name=name) as daemon:
        with running(uml, [blk(daemon.socket)], logs / name, daemon) as guest:
            assert guest.features("vda")[RING_PACKED] == (request.param == "packed")
            yield Disk(guest, daemon, image)
        daemon.finish()


@met(UML, deed="`vhost-blk`: data, each kind of ring")
def test_what_is_read_and_written_is_in_the_image(disk: Disk) -> None:
    assert disk.read(8 * MIB, 24 * MIB) == disk.holds(8 * MIB, 24 * MIB)
    written = disk.write(16 * MIB, 8 * MIB)
    assert written == disk.holds(16 * MIB, 8 * MIB) == disk.read(16 * MIB, 8 * MIB)


@met(UML, deed="`vhost-blk`: a file system, each kind of ring")
def test_a_file_system_is_made_and_used(disk: Disk) -> None:
    disk.guest.run("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt", seconds=60)
    disk.guest.run(
        "cd /mnt && for i in 1 2 3 4 5 6 7 8; do head -c $((i * 150003)) /dev/urandom > $i; done"
        " && sha256sum ? > sums && cd / && umount /mnt"
    )
    disk.guest.run("mount /dev/vda /mnt && cd /mnt && sha256sum -c sums && cd / && umount /mnt")
    check = subprocess.run([tool("e2fsck"), "-f", "-n", disk.image], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


@met(UML, deed="`vhost-blk`: driver reloaded, each kind of ring")
def test_the_driver_is_reloaded(disk: Disk) -> None:
    for turn in range(RELOADS):
        disk.guest.run("rmmod virtio_blk && insmod /modules/virtio_blk.ko")
        start = (turn + 1) * 2 * MIB
        written = disk.write(start, MIB)
        assert written == disk.read(start, MIB) == disk.holds(start, MIB)
