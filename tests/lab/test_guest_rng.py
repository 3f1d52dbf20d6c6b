# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""vhost-rng behind QEMU: what Linux reads from /dev/hwrng are the source's bytes, in their order."""

import base64
import hashlib

import pytest

from tests.lab.guest import Guest
from tests.lab.machine import SEED, Machine

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

# Far more than a guest can have read: its kernel takes some for itself.
STREAM = b"".join(hashlib.shake_256(f"{SEED}:{i}".encode()).digest(4096) for i in range(512))
HW_RANDOM = "/sys/class/misc/hw_random"


def hwrng(guest: Guest, n: int) -> bytes:
    """`n` bytes of /dev/hwrng, while the kernel takes none for itself: a quality of 0 stops it, but it may be
    in the middle of its last ones.
    """
    read = "dd if=/dev/hwrng count=1 iflag=fullblock status=none"
    guest.run(f"echo 0 > {HW_RANDOM}/rng_quality; {read} bs=256 > /dev/null")
    return base64.b64decode(guest.run(f"{read} bs={n} | base64 -w 0"))


def place(data: bytes) -> int:
    """Where in the stream `data` begins."""
    found = STREAM.find(data)
    assert found >= 0, f"{len(data)} bytes from the guest, {data[:16].hex()}..., are not what the source gave"
    return found


def test_linux_uses_our_device(machine: Machine) -> None:
    assert machine.guest.run(f"cat {HW_RANDOM}/rng_current").startswith("virtio_rng")


def test_the_guest_reads_the_bytes_of_the_source(machine: Machine) -> None:
    first = place(hwrng(machine.guest, 16384))
    assert place(hwrng(machine.guest, 16384)) >= first + 16384


def test_the_driver_can_be_reloaded(machine: Machine) -> None:
    before = place(hwrng(machine.guest, 1024))
    for _ in range(3):
        machine.guest.run("rmmod virtio_rng && insmod /modules/virtio_rng.ko")
    assert place(hwrng(machine.guest, 1024)) > before


def test_the_device_can_be_unbound_and_bound(machine: Machine) -> None:
    before = place(hwrng(machine.guest, 1024))
    device = machine.guest.run("cd /sys/bus/virtio/drivers/virtio_rng; echo virtio*")
    machine.guest.run(f"cd /sys/bus/virtio/drivers/virtio_rng; echo {device} > unbind; echo {device} > bind")
    assert place(hwrng(machine.guest, 1024)) > before


def test_the_daemon_survives_the_guests_reboot(machine: Machine) -> None:
    before = place(hwrng(machine.guest, 1024))
    machine.guest.reboot()
    assert place(hwrng(machine.guest, 1024)) > before
    assert machine.rng.running
