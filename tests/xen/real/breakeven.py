# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What it costs to copy pieces of granted memory, and what to map and unmap them, by their size and number.

Whatever is compared takes turns. A figure is the lower quartile of its rounds: other work on the machine
can only add to times this short.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

from pyxenctrl import PAGE_SIZE, gnttab
from vhost._core import ffi, lib
from vhost.mem import GuestMemory, RegionSpec
from vhost.mem.xen import XenMemory

from . import peraccess
from .frontend import GRANT, GRANT_BIT, NO_ADVANCE
from .puppet import Puppet

__all__ = ("FIRST_REF", "both_directions", "break_even", "own_time")

SIZES = (64, 256, 512, 1024, 2048, 4096, 8192, 16384)
NUMBERS = (1, 32)
TOTALS = tuple(kib << 10 for kib in (16, 64, 128, 256, 512))
FIRST_REF = 16
LIBRARY = ("map_domain_grant_refs", "unmap", "grant_copy")
ALWAYS = 1 << 30


class Batch:
    """Pieces next to each other, as the C core hands them to guest memory.

    :param pieces: bytes, and whether the device writes them.
    """

    def __init__(self, domid: int, pieces: Iterable[tuple[int, bool]]) -> None:
        wants, page = [], FIRST_REF
        for size, write in pieces:
            wants.append({"gpa": GRANT_BIT | page * PAGE_SIZE, "len": size, "write": write, "domid": domid})
            page += -(-size // PAGE_SIZE)
        self._number = len(wants)
        self._wanted = ffi.new("struct vh_defer[]", wants)
        self._pieces = ffi.new("struct vh_defer[]", self._number)
        self._chain = ffi.new("struct vh_chain *", {"written": ALWAYS})
        parts = {"n": 1, "n_defer": self._number, "chain": self._chain, "defer": self._pieces}
        self._batch = ffi.new("struct vh_batch *", parts)

    def reach(self, memory: GuestMemory) -> float:
        """Makes them reachable, and gives them back written; seconds."""
        ffi.memmove(self._pieces, self._wanted, ffi.sizeof(self._wanted))
        start = time.perf_counter()
        deferred = memory.map_deferred(self._pieces, self._number)
        if copies := lib.vh_grants_written(self._batch):
            deferred.store(copies)
        deferred.close()
        return time.perf_counter() - start


class Clock:
    """Takes the time of the library's calls. A context manager."""

    def __init__(self) -> None:
        self.seconds = 0.0
        library = gnttab.library()
        self._calls = {name: getattr(library, name) for name in (f"xengnttab_{call}" for call in LIBRARY)}

    def __enter__(self) -> "Clock":
        for name, call in self._calls.items():
            setattr(gnttab.library(), name, self._timed(call))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self._calls.items():
            setattr(gnttab.library(), name, call)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            self.seconds += time.perf_counter() - start
            return result

        return timed


def reachable(puppet: Puppet, memory: GuestMemory) -> GuestMemory:
    """The memory, with all that the puppet has granted from FIRST_REF on."""
    address = GRANT_BIT | FIRST_REF * PAGE_SIZE
    region = RegionSpec(address, puppet.pages * PAGE_SIZE, address, 0, GRANT | NO_ADVANCE, puppet.domid)
    memory.replace([(region, None)])
    return memory


def quartiles(taken: dict[str, list[float]]) -> dict[str, float]:
    """The lower quartile of each."""
    return {name: statistics.quantiles(values, n=4)[0] for name, values in taken.items()}


def break_even(puppet: Puppet, rounds: int) -> list[dict[str, Any]]:
    """Copying against mapping, for pieces of each size, number and direction.

    :returns: seconds of a batch with ``copy`` and ``map``, and of library calls in it, ``copy_calls`` and
        ``map_calls``.
    """
    ways = {
        name: reachable(puppet, XenMemory(copy_each=each)) for name, each in (("copy", ALWAYS), ("map", 0))
    }
    table = []
    with Clock() as clock:
        for number in NUMBERS:
            for size in SIZES:
                for write in (False, True):
                    batch = Batch(puppet.domid, [(size, write)] * number)
                    taken: dict[str, list[float]] = {}
                    for _ in range(rounds):
                        for name, memory in ways.items():
                            clock.seconds = 0.0
                            taken.setdefault(name, []).append(batch.reach(memory))
                            taken.setdefault(f"{name}_calls", []).append(clock.seconds)
                    table.append({"number": number, "size": size, "write": write, **quartiles(taken)})
    for memory in ways.values():
        memory.clear()
    return table


def both_directions(puppet: Puppet, rounds: int) -> list[dict[str, Any]]:
    """Batches that read as much as they write, in pieces of 16 KiB.

    :returns: seconds of a batch with ``two`` map calls, and with ``one`` and copies; ``write`` says which
        direction is copied, of ``size`` bytes.
    """
    ways = {
        name: reachable(puppet, XenMemory(copy_each=0, copy_all=copy_all))
        for name, copy_all in (("two", 0), ("one", ALWAYS))
    }
    table = []
    for size in TOTALS:
        for write in (False, True):
            # The piece more makes the other direction the larger one.
            pieces = [
                *[(SIZES[-1], write), (SIZES[-1], not write)] * (size // SIZES[-1]),
                (SIZES[0], not write),
            ]
            batch = Batch(puppet.domid, pieces)
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, memory in ways.items():
                    taken[name].append(batch.reach(memory))
            table.append({"size": size, "write": write, **quartiles(taken)})
    for memory in ways.values():
        memory.clear()
    return table


def own_time(puppet: Puppet, rounds: int) -> dict[str, float]:
    """Seconds of an ``access`` of PerAccess, and what it takes without its system calls: ``python``."""
    number = NUMBERS[-1]
    memory = reachable(puppet, peraccess.PerAccess(lambda *_: None))
    batch = Batch(puppet.domid, [(PAGE_SIZE, True)] * number)
    taken: dict[str, list[float]] = {"access": [], "python": []}
    for _ in range(rounds):
        taken["access"].append(batch.reach(memory) / number)
        with mock.patch.object(peraccess, "fcntl", NoCalls), mock.patch.object(peraccess, "lib", NoCalls):
            taken["python"].append(batch.reach(memory) / number)
    memory.clear()
    return quartiles(taken)


class NoCalls:
    """Stands in for the modules by which PerAccess makes its system calls."""

    PROT_READ, PROT_WRITE, MAP_SHARED = lib.PROT_READ, lib.PROT_WRITE, lib.MAP_SHARED

    @staticmethod
    def ioctl(fd: int, request: int, argument: bytes | bytearray) -> int:
        """Done."""
        return 0

    @staticmethod
    def mmap(address: object, size: int, protection: int, flags: int, fd: int, offset: int) -> object:
        """Somewhere."""
        return ffi.NULL

    @staticmethod
    def munmap(address: object, size: int) -> int:
        """Done."""
        return 0
