# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A block device served by a process of its own, which counts what it does to reach its guest's memory.

The calls of libxengnttab are counted where pyxenctrl makes them. The numbers are in a file that both
processes have mapped, so that nobody asks the measured one for them.
"""

import contextlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import vhost
from pyxenctrl import gnttab
from vhost.devices.blk import Blk
from vhost.devices.image import Image
from vhost.mem import GuestMemory
from vhost.mem.xen import XenMemory

from .peraccess import PerAccess

__all__ = ("COUNTED", "MODES", "Served", "environment", "served")

CHECKOUT = Path(__file__).parents[3]
#: What is counted. A batch counts if a part of it had to be reached; segments are what copy calls consist of.
COUNTED = ("batches", "maps", "pages", "unmaps", "copies", "segments")
BATCHES, MAPS, PAGES, UNMAPS, COPIES, SEGMENTS = range(len(COUNTED))
#: How guest memory is reached: makes it.
MODES: dict[str, Callable[[memoryview], GuestMemory]] = {
    "per access": lambda counts: PerAccess(partial(count_accesses, counts)),
    "map": lambda _: XenMemory(copy_each=0),
    "copy": lambda _: XenMemory(copy_each=1 << 20),
    "default": lambda _: XenMemory(),
    "cache": lambda _: XenMemory(grant_cache=1024),
}


def shared_counts(file: Path) -> memoryview:
    """The numbers, by their index."""
    with open(file, "a+b") as opened:
        opened.truncate(mmap.PAGESIZE)
        return memoryview(mmap.mmap(opened.fileno(), mmap.PAGESIZE)).cast("Q")


def count_accesses(counts: memoryview, pieces: int, pages: int) -> None:
    """For a batch whose pieces are mapped one by one."""
    counts[MAPS] += pieces
    counts[PAGES] += pages
    counts[UNMAPS] += pieces


def count_calls(counts: memoryview) -> None:
    """Counts what this process calls of libxengnttab from now on."""
    library = gnttab.library()

    def replace(name: str, calls: int, amounts: int | None = None) -> None:
        call = getattr(library, f"xengnttab_{name}")

        def counted(handle: Any, count: int, *arguments: Any) -> Any:
            counts[calls] += 1
            if amounts is not None:
                counts[amounts] += count
            return call(handle, count, *arguments)

        setattr(library, f"xengnttab_{name}", counted)

    replace("map_grant_refs", MAPS, PAGES)
    replace("map_domain_grant_refs", MAPS, PAGES)
    replace("map_grant_ref", MAPS)
    replace("map_grant_ref_notify", MAPS)
    replace("unmap", UNMAPS)
    replace("grant_copy", COPIES, SEGMENTS)


def memory(mode: str, counts: memoryview) -> GuestMemory:
    """Guest memory that counts its batches."""
    made = MODES[mode](counts)
    reach = made.map_deferred

    def counted(pieces: Any, n: int) -> Any:
        counts[BATCHES] += 1
        return reach(pieces, n)

    made.map_deferred = counted  # type: ignore[method-assign]
    return made


def main(mode: str, listener: str, image: str, file: str) -> None:
    """The measured process."""
    counts = shared_counts(Path(file))
    count_calls(counts)
    disk = Image(image, lock=False)  # all that are compared serve the same one
    vhost.serve(Blk(disk), fd=int(listener), memory=partial(memory, mode, counts))


class Served:
    """The measured process, as the other one sees it."""

    def __init__(self, mode: str, path: Path, counts: memoryview, pid: int) -> None:
        self.mode = mode
        #: Of its socket.
        self.path = path
        self.pid = pid
        self._counts = counts

    def counts(self) -> dict[str, int]:
        """What it has counted so far."""
        return dict(zip(COUNTED, self._counts, strict=False))

    def cpu(self) -> float:
        """Seconds of processor time that its threads have had."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def environment() -> dict[str, str]:
    """For processes of which the time is taken: they find these modules, and nothing watches them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return {**kept, "PYTHONPATH": str(CHECKOUT)}


@contextlib.contextmanager
def served(mode: str, image: Path, work: Path) -> Iterator[Served]:
    """A measured process that serves an image; it is killed in the end."""
    name = mode.replace(" ", "-")
    path, file = work / f"{name}.sock", work / f"{name}.counts"
    counts = shared_counts(file)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [sys.executable, "-m", __name__, mode, str(listener.fileno()), str(image), str(file)]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], env=environment())
    try:
        yield Served(mode, path, counts, process.pid)
        assert process.poll() is None, f"{mode}: it has ended with {process.returncode}"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
