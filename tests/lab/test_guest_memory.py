# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Memory of a guest that comes and goes while it writes to its disks: DIMMs, virtio-mem, and the region that
holds the rings."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab import guest as guests
from tests.lab.daemons import Daemon, ours
from tests.lab.guest import QEMU, Guest
from tests.lab.kernel import LINUX, Kernel
from tests.lab.machine import vhost_user
from tests.lab.peers import met
from tests.lab.writers import faults, onwards, writing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

MIB = 1 << 20
DISK_BYTES = 64 * MIB
MEMORY, DIMM, VIRTIO_MEM = 256, 128, 256  # MiB
TURNS = 3
# Where the chipset says what is memory in the first megabyte (its PAM registers): all of it, or not all.
CHIPSET, PAM = "/sys/bus/pci/devices/0000:00:00.0/config", range(0x90, 0x97)
ALL_MEMORY, PARTLY = "33", "00"


class Busy(NamedTuple):
    """A guest that writes to two disks, with split and with packed rings."""

    guest: Guest
    daemons: list[Daemon]
    done: Callable[[], int]

    def count(self, pattern: str) -> int:
        """Lines of the daemons' logs."""
        return sum(len(re.findall(pattern, daemon.output())) for daemon in self.daemons)

    def memory(self) -> int:
        """MiB of the guest."""
        return int(self.guest.run("grep MemTotal /proc/meminfo").split()[1]) >> 10

    def until(self, least: int, most: int) -> None:
        """Wait until the guest has so much memory more or less than it needs for itself, in MiB."""
        deadline = time.monotonic() + 60
        while not least <= (now := self.memory()) <= most:
            assert time.monotonic() < deadline, f"the guest has {now} MiB, not {least} to {most}"


@contextmanager
def machine(kernel: Kernel, root: Path, work: Path, logs: Path) -> Iterator[Busy]:
    with ExitStack() as stack:
        daemons: list[Daemon] = []
        devices: list[str] = []
        for ring in ("split", "packed"):
            image = work / f"{ring}.img"
            image.write_bytes(os.urandom(DISK_BYTES))
            options = ("--blk-file", image, "--num-queues", "2")
            daemon = stack.enter_context(ours("vhost-blk", *options, name=ring, work=work, logs=logs))
            packed = "on" if ring == "packed" else "off"
            devices += vhost_user(f"vhost-user-blk-pci,num-queues=2,packed={packed}", daemon.socket, ring)
            daemons.append(daemon)
        argv = guests.machine(
            kernel.image,
            root,
            memory=MEMORY,
            room=TURNS * DIMM + VIRTIO_MEM,
            arguments="memhp_default_state=online_movable",
        )
        growing = (
            *("-object", f"memory-backend-memfd,id=more,size={VIRTIO_MEM}M,share=on"),
            *("-device", "virtio-mem-pci,id=growing,memdev=more,requested-size=0"),
        )
        guest = stack.enter_context(Guest((*argv, *devices, *growing), logs, witnesses=daemons))
        with writing(guest, ("vda", "vdb")) as done:
            yield Busy(guest, daemons, done)
            onwards(done)
        assert not faults(guest)
        assert guest.power_off() == 0
        for daemon in daemons:
            daemon.finish()


def set_chipset(busy: Busy, value: str, *registers: int) -> None:
    bytes_ = f"dd of={CHIPSET} bs=1 seek=$at count=1 conv=notrunc status=none"
    busy.guest.run(f"for at in {' '.join(map(str, registers))}; do printf '\\x{value}' | {bytes_}; done")


def rings_go_and_come(busy: Busy) -> None:
    """The chipset makes one region of two, and two of one: QEMU takes the region with the rings away, and
    adds another one with the same memory."""
    away = r"ring \d rests until its memory is there"
    set_chipset(busy, ALL_MEMORY, *PAM)
    before = busy.count(away)
    for _ in range(TURNS):
        for value in (PARTLY, ALL_MEMORY):
            set_chipset(busy, value, PAM[-1])
            onwards(busy.done)
    assert busy.count(away) >= before + 2 * 2 * TURNS  # two disks, there and back


def dimms_are_plugged_and_unplugged(busy: Busy) -> None:
    qmp, own = busy.guest.qmp, busy.memory()
    for turn in range(TURNS):
        qmp.execute("object-add", qom_type="memory-backend-memfd", id=f"m{turn}", size=DIMM * MIB, share=True)
        qmp.execute("device_add", driver="pc-dimm", id=f"dimm{turn}", memdev=f"m{turn}")
        busy.until(own + DIMM - 8, own + DIMM)
        onwards(busy.done)
        qmp.execute("device_del", id=f"dimm{turn}")
        qmp.await_event("DEVICE_DELETED", device=f"dimm{turn}")
        qmp.execute("object-del", id=f"m{turn}")
        busy.until(own - 8, own + 8)
        onwards(busy.done)


def virtio_mem_grows_and_shrinks(busy: Busy) -> None:
    own = busy.memory()
    for _ in range(2):
        for size in (VIRTIO_MEM, 0):
            there = {"path": "/machine/peripheral/growing", "property": "requested-size"}
            busy.guest.qmp.execute("qom-set", **there, value=size * MIB)
            busy.until(own + size - 8, own + size + 8)
            onwards(busy.done)


@met(QEMU, LINUX, deed="`vhost-blk`: memory plugged, unplugged and moved under writers, both kinds of ring")
def test_writers_do_not_notice(kernel: Kernel, root: Path, work: Path, logs: Path) -> None:
    with machine(kernel, root, work, logs) as busy:
        rings_go_and_come(busy)
        dimms_are_plugged_and_unplugged(busy)
        virtio_mem_grows_and_shrinks(busy)
