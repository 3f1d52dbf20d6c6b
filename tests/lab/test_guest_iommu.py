# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""vhost-blk for guests with an IOMMU (QEMU's intel-iommu): data, how much is asked for, resets, and a move.

The disk is behind a port of its own, because QEMU gives address translation services to no device on the root
bus, and without them this version of it does not say what Linux takes back in its lazy mode.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.daemons import Daemon, ours
from tests.lab.guest import QEMU, Guest, machine
from tests.lab.kernel import LINUX, Kernel
from tests.lab.machine import vhost_user
from tests.lab.migration import migrate
from tests.lab.peers import met
from tests.lab.prerequisites import tool
from tests.lab.writers import onwards, writing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

DISK_BYTES = 32 << 20
RESETS = 5
BLOCKS = 150  # of 4096 bytes, written and read by each processor
# Header, data and status of a request, each mapped by itself; and its indirect table.
BUFFERS, TABLE = 3, 1
# Of the requests, those whose header lies across the end of a page, which takes two questions.
ACROSS = 0.1
# Questions for each request that may be asked twice: QEMU answers late on a machine with much else to do.
TWICE = 0.05
PAGE = 4096

# One for each processor, each on a part of the disk of its own.
WORK = f"""\
part=$1
block="bs=4096 count={BLOCKS}"
taskset -c $part dd if=/tmp/data of=/dev/vda $block seek=$((part * 1000)) oflag=direct conv=notrunc || exit 1
taskset -c $part dd if=/dev/vda of=/tmp/have.$part $block skip=$((part * 1000)) iflag=direct || exit 1
cmp /tmp/data /tmp/have.$part && echo good
"""


def start(
    stack: ExitStack, image: Path, queues: int, work: Path, logs: Path, name: str, *options: str
) -> Daemon:
    options = ("-b", str(image), f"--num-queues={queues}", *options)
    return stack.enter_context(ours("vhost-blk", *options, work=work, logs=logs, name=name))


def command(
    kernel: Kernel,
    root: Path,
    disk: Path,
    *,
    queues: int = 2,
    ring: str = "split",
    mode: str,
) -> Sequence[str]:
    """QEMU's command line for a guest with a processor for each queue.

    :param mode: when Linux tells the IOMMU what it has unmapped: ``strict``, at once; ``lazy``, now and then,
        and then that all is gone.
    """
    arguments = f"intel_iommu=on iommu.strict={int(mode == 'strict')}"
    packed = "on" if ring == "packed" else "off"
    options = f"num-queues={queues},packed={packed}"
    options = f"bus=port0,iommu_platform=on,ats=on,disable-legacy=on,{options}"
    return (
        *machine(kernel.image, root, memory=256, cpus=queues, arguments=arguments),
        *("-device", "intel-iommu,intremap=off,device-iotlb=on"),
        *("-device", "pcie-root-port,id=port0,chassis=1"),
        *vhost_user(f"vhost-user-blk-pci,{options}", disk, "disk"),
    )


def faults(guest: Guest) -> int:
    """How often the guest's IOMMU was asked for what is not mapped."""
    return int(guest.run(r"dmesg | grep -cF 'DMAR: [DMA' || true"))


def complaints(guest: Guest, *known: str) -> list[str]:
    """What QEMU has said, but for its own look at a ring of the firmware's that the kernel has unmapped.

    :param known: more that is no complaint.
    """
    own = ("vtd_iova_to_slpte: detected slpte permission", "vtd_iommu_translate: detected translation")
    return [
        line for line in guest.process.output().splitlines() if not any(k in line for k in (*own, *known))
    ]


def busy(guest: Guest, cpus: int) -> None:
    """Reads and writes on all processors at once; what is read is what was written."""
    guest.run(f"dd if=/dev/urandom of=/tmp/data bs=4096 count={BLOCKS}; cat > /tmp/work << 'end'\n{WORK}end")
    parts = " ".join(map(str, range(cpus)))
    guest.run(f"for part in {parts}; do sh /tmp/work $part > /tmp/out.$part 2>&1 & done; wait", 90)
    assert guest.run("cat /tmp/out.* | grep -c good") == str(cpus), guest.run("cat /tmp/out.*; dmesg | tail")


def requests(guest: Guest) -> int:
    """Reads and writes of the disk that were completed."""
    fields = guest.run("cat /sys/block/vda/stat").split()
    return int(fields[0]) + int(fields[4])


def answered_questions(daemon: Daemon) -> int:
    """Translations that QEMU has told."""
    return len(re.findall(r"IOTLB_MSG .* type=2\n", daemon.output()))


def pages_taken_back(daemon: Daemon) -> int:
    """Pages whose translation QEMU has taken back, which in strict mode are those that were mapped."""
    sizes = re.findall(r"IOTLB_MSG .* size=(0x[0-9a-f]+) .* type=3\n", daemon.output())
    return sum(int(size, 16) // PAGE for size in sizes)


@pytest.mark.parametrize(
    ("ring", "queues", "mode", "indirect"),
    [
        ("split", 2, "lazy", True),
        ("packed", 2, "strict", False),
        ("split", 4, "strict", True),
        ("packed", 4, "lazy", False),
    ],
)
@met(QEMU, LINUX, deed="`vhost-blk` behind an IOMMU ({mode}), {ring} rings, queues: {queues}")
def test_a_disk_behind_an_iommu(
    kernel: Kernel, root: Path, work: Path, logs: Path, ring: str, queues: int, mode: str, indirect: bool
) -> None:
    image, name = work / f"{ring}-{queues}.img", f"{ring}-{queues}"
    image.write_bytes(os.urandom(DISK_BYTES))
    features = "--features=+iommu,+indirect" if indirect else "--features=+iommu"
    folder = logs / name
    folder.mkdir()
    with ExitStack() as stack:
        daemon = start(stack, image, queues, work, folder, name, features)
        argv = command(kernel, root, daemon.socket, queues=queues, ring=ring, mode=mode)
        guest = stack.enter_context(Guest(argv, folder, (daemon,)))
        before = faults(guest), requests(guest), answered_questions(daemon)
        kept = pages_taken_back(daemon)
        busy(guest, queues)
        assert faults(guest) == before[0]
        done, asked = requests(guest) - before[1], answered_questions(daemon) - before[2]
        assert done >= 2 * BLOCKS * queues
        # What Linux takes back in its lazy mode is everything, also what requests in flight are about to use.
        each = BUFFERS + indirect * TABLE + (mode == "lazy")
        assert asked <= (each + ACROSS) * done, f"{asked} for {done} requests"
        if mode == "strict":
            pages = pages_taken_back(daemon) - kept
            assert asked <= pages + TWICE * done, f"{asked} for {pages} pages of {done} requests"
        assert guest.power_off() == 0, guest.process.tail()
        assert not complaints(guest)
        daemon.finish()
        assert re.findall(r"translations: .* (\d+) rings set up anew", daemon.output())[-1] == "0"


@met(QEMU, LINUX, deed="`vhost-blk` behind an IOMMU: five resets under I/O")
def test_resets_under_io(kernel: Kernel, root: Path, work: Path, logs: Path) -> None:
    image = work / "reset.img"
    image.write_bytes(os.urandom(DISK_BYTES))
    folder = logs / "reset"
    folder.mkdir()
    with ExitStack() as stack:
        daemon = start(stack, image, 2, work, folder, "reset", "--features=+iommu")
        argv = command(kernel, root, daemon.socket, mode="lazy")
        guest = stack.enter_context(Guest(argv, folder, (daemon,)))
        for _ in range(RESETS):
            copy = "dd if=/dev/vda of=/dev/vda bs=4096 count=500 iflag=direct oflag=direct conv=notrunc"
            guest.run(f"for part in 0 1; do (while {copy}; do :; done) > /dev/null 2>&1 & done")
            guest.reset()
        busy(guest, 2)
        assert guest.power_off() == 0, guest.process.tail()
        # Questions that were under way when the device stopped.
        late = (
            "Unexpected IOTLB message when virtio device is stopped",
            "Fail to lookup the translated address",
        )
        assert not complaints(guest, *late)
        daemon.finish()


@met(QEMU, LINUX, deed="`vhost-blk` behind an IOMMU: live migration under I/O, file system checked")
def test_a_guest_with_an_iommu_moves(kernel: Kernel, root: Path, work: Path, logs: Path) -> None:
    image = work / "moved.img"
    image.write_bytes(os.urandom(DISK_BYTES))
    with ExitStack() as stack:

        def place(life: int) -> tuple[Daemon, Sequence[str], Path]:
            folder = logs / f"place-{life}"
            folder.mkdir()
            # Both places have the image open for a moment; QEMU sees to it that only one uses it.
            daemon = start(stack, image, 2, work, folder, f"moved-{life}", "--features=+iommu", "--no-lock")
            # In Linux's lazy mode, this version of QEMU fails an assertion of its own after the move.
            return daemon, command(kernel, root, daemon.socket, mode="strict"), folder

        old, argv, folder = place(0)
        guest = stack.enter_context(Guest(argv, folder, (old,)))
        guest.run("dd if=/dev/zero of=/dev/vda bs=1M count=2 conv=notrunc oflag=direct")
        with writing(guest) as done:
            onwards(done)
            new, argv, folder = place(1)
            migrate(guest, argv, folder, (new,), socket=work / "iommu.sock")
            old.finish()
            onwards(done)
        guest.run("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt && dmesg > /mnt/file && umount /mnt", 60)
        assert guest.power_off() == 0, guest.process.tail()
        assert not complaints(guest)
        new.finish()
        check = subprocess.run([tool("e2fsck"), "-f", "-n", image], capture_output=True, text=True)
        assert check.returncode == 0, check.stdout + check.stderr
