# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Programs in a guest that write to its disks past the cache, read back what they wrote, and compare."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.lab.guest import Guest

__all__ = ("WRITERS", "faults", "onwards", "writing")

WRITERS = 4  # of each disk
BLOCK, BLOCKS = 16384, 32  # of a write, and of a writer's part of the disk

# Each round writes other data than the one before, and reads back what it wrote.
WRITER = f"""\
n=0
while [ ! -e /tmp/stop ]; do
    n=$((n + 1))
    skip=$((n % 64)) seek=$(($2 * {BLOCKS}))
    block="bs={BLOCK} count={BLOCKS}"
    dd if=/tmp/data of=/dev/$1 $block skip=$skip seek=$seek conv=notrunc oflag=direct || exit 1
    dd if=/tmp/data of=/tmp/want.$1.$2 $block skip=$skip || exit 1
    dd if=/dev/$1 of=/tmp/have.$1.$2 $block skip=$seek iflag=direct || exit 1
    cmp /tmp/want.$1.$2 /tmp/have.$1.$2 || exit 1
done
echo "good $n"
"""


@contextmanager
def writing(guest: Guest, disks: Sequence[str] = ("vda",)) -> Iterator[Callable[[], int]]:
    """Writers run in the guest. Gives what counts the requests of the disk that had done least; in the end
    all must be well."""

    def done() -> int:
        stats = guest.run(f"cd /sys/block && cat {' '.join(f'{disk}/stat' for disk in disks)}").splitlines()
        return min(int(fields[0]) + int(fields[4]) for fields in map(str.split, stats))

    guest.run(f"dd if=/dev/urandom of=/tmp/data bs={BLOCK} count={64 + BLOCKS}")
    guest.run(f"cat > /tmp/writer << 'end'\n{WRITER}end")
    for disk in disks:
        for index in range(WRITERS):
            guest.run(f"sh /tmp/writer {disk} {index} > /tmp/writer.{disk}.{index} 2>&1 &")
    yield done
    guest.run("touch /tmp/stop")
    wanted = WRITERS * len(disks)
    guest.run(f"while [ $(tail -qn 1 /tmp/writer.* | grep -c good) -lt {wanted} ]; do sleep 0.1; done", 60)


def onwards(done: Callable[[], int]) -> None:
    """Returns when more has been done than was under way."""
    before, deadline = done(), time.monotonic() + 60
    while done() <= before + WRITERS:
        assert time.monotonic() < deadline, "no request is answered any more"


def faults(guest: Guest) -> str:
    """What the guest's kernel has to say against its disks."""
    return guest.run("dmesg | grep -iE 'virtio_blk.*(head|error)|I/O error|blk_update' || true")
