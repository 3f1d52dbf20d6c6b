# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""vhost-rng behind QEMU: what Linux reads from /dev/hwrng are the source's bytes, in their order."""

import base64
import hashlib

import pytest

from tests.lab.guest import QEMU, Guest
from tests.lab.kernel import LINUX
from tests.lab.machine import SEED, Machine
from tests.lab.peers import met

DEED = "`vhost-rng`: bytes, driver reloaded, reboot"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), met(QEMU, LINUX, deed=DEED)]

# Far more than a guest can have read: its kernel takes some for itself.
STREAM = b"".join(hashlib.shake_256(f"{SEED}:{i}".encode()).digest(4096) for i in range(512))
KERNEL_BUFFER = 64


def hwrng(guest: Guest, n: int) -> bytes:
    """`n` bytes of /dev/hwrng."""
    read = f"dd if=/dev/hwrng bs={n} count=1 iflag=fullblock status=none"
    return base64.b64decode(guest.run(f"{read} | base64 -w 0"))


def place(data: bytes) -> int:
    """Where in the stream `data` begins. It is a part of the stream without gaps, except that the kernel's
    thread [hwrng] may have taken one buffer meanwhile: it does so every ten seconds or less often.
    """
    start = STREAM.find(data[:16])
    assert start >= 0, f"the guest read {data[:16].hex()}..., which the source never gave"
    expected = STREAM[start : start + len(data)]
    if data != expected:
        same = next(i for i in range(len(data)) if data[: i + 1] != expected[: i + 1])
        rest = STREAM[start + same + KERNEL_BUFFER :][: len(data) - same]
        assert data[same:] == rest, f"after {same} bytes the guest read something else than the source gave"
    return start


def test_linux_uses_our_device(machine: Machine) -> None:
    assert machine.guest.run("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")


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
