# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A stand-in for privcmd and for Xen's knowledge of domains: frame n of a domain is page n of one file.

For tests without Xen. What a test sets and reads is in one :class:`Frames`; on a Xen,
tests/xen/real does the same.
"""

import ctypes
import mmap
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    # Importing vhost.mem loads the Xen libraries, and so comes after fakes.load().
    from vhost.mem import Region, RegionSpec

#: Of the file that a test maps by frames; the same may be mapped by another name too.
NAME = "xen-frames"

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
)


@dataclass
class Frames:
    """One domain's memory, how it fails, and what was done with it."""

    memory: int = -1  # a file with the domain's pages, -1: no Xen here
    domid: int = -1  # the only domain, -1: any
    base: int = 0  # guest-physical address of the file's first byte
    pv: dict[int, int] | None = None  # machine frame of each frame, for a PV domain
    bad: range = range(0)  # these frames fail in the next bad_times calls
    bad_errno: int = 0
    bad_times: int = 0
    closed_to_us: bool = False  # only who was given a descriptor may map
    calls: list[tuple[str, int]] = field(default_factory=list)  # "map" or "retry", frames
    restricted: list[int] = field(default_factory=list)
    given: int = 0  # devices made of a descriptor of the front-end
    open: int = 0

    @property
    def maps(self) -> int:
        """Calls that map whole chunks."""
        return sum(name == "map" for name, _ in self.calls)

    @property
    def pages(self) -> int:
        """Pages of the domain that are mapped in this process."""
        lines = Path("/proc/self/maps").read_text().splitlines()
        found = [line.split()[0].split("-") for line in lines if line.endswith(f"/{NAME}")]
        return sum(int(end, 16) - int(start, 16) for start, end in found) // 4096

    def place(
        self, address: int, frames: Sequence[int], indexes: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        """Map some of the frames, as far as the test lets it; returns (index, errno) of the others."""
        size = os.fstat(self.memory).st_size
        failed, bad = [], self.bad if self.bad_times else range(0)
        self.bad_times -= bool(self.bad_times)
        run: list[int] = []  # indexes whose pages follow each other, and can be mapped as one

        def flush() -> None:
            if run:
                at, offset = address + run[0] * 4096, frames[run[0]] * 4096 - self.base
                flags = mmap.MAP_SHARED | 0x10  # MAP_FIXED
                assert _mmap(at, len(run) * 4096, 3, flags, self.memory, offset) == at, ctypes.get_errno()
                run.clear()

        for index in indexes:
            offset = frames[index] * 4096 - self.base
            if frames[index] in bad:
                failed.append((index, self.bad_errno))
            elif offset < 0 or offset + 4096 > size:
                failed.append((index, 22))
            else:
                if run and (index != run[-1] + 1 or frames[index] != frames[run[-1]] + 1):
                    flush()
                run.append(index)
                continue
            flush()
        flush()
        return tuple(failed)


state = Frames()


class Privcmd:
    """As :class:`pyxenctrl.Privcmd`."""

    def __init__(self, fd: int | None = None) -> None:
        if fd is None and (state.memory < 0 or state.closed_to_us):
            raise FileNotFoundError(2, "cannot open /dev/xen/privcmd: No such file or directory")
        self.own = fd is None
        self._only: int | None = None
        state.given += fd is not None
        state.open += 1

    def map(
        self, address: int, domid: int, frames: "array[int]", protection: int
    ) -> tuple[tuple[int, int], ...]:
        assert protection == 3
        if (state.domid >= 0 and domid != state.domid) or self._only not in (None, domid):
            raise ProcessLookupError(3, f"cannot map {len(frames)} frames of domain {domid}: No such process")
        state.calls.append(("map", len(frames)))
        return state.place(address, frames, range(len(frames)))

    def retry(
        self, address: int, domid: int, frames: "array[int]", indexes: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        state.calls.append(("retry", len(indexes)))
        return state.place(address, frames, indexes)

    def restrict(self, domid: int) -> None:
        assert self.own, "the front-end would be restricted too"
        self._only = domid
        state.restricted.append(domid)

    def close(self) -> None:
        state.open -= 1

    def __enter__(self) -> "Privcmd":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Handle:
    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Control(_Handle):
    """As :class:`pyxenctrl.Control`, to be handed on."""


class DeviceModel(_Handle):
    """As much of :class:`pyxenctrl.DeviceModel` as tells what kind of domain it is."""

    def nr_vcpus(self, domid: int) -> int:
        if state.domid >= 0 and domid != state.domid:
            raise ProcessLookupError(3, f"cannot count the vCPUs of domain {domid}: No such process")
        if state.pv is not None:
            raise OSError(22, f"cannot count the vCPUs of domain {domid}: Invalid argument")
        return 1


@contextmanager
def machine_frames(control: Control, domid: int) -> Iterator[Any]:
    """As :func:`pyxenctrl.machine_frames`."""

    class Table:
        def lookup(self, first: int, count: int) -> "array[int]":
            assert state.pv is not None
            return array("Q", [state.pv[frame] for frame in range(first, first + count)])

    yield Table()


def install(patch: pytest.MonkeyPatch | None = None) -> None:
    """Put the stand-ins in the place of what the Xen build uses, for a test or for the whole run."""
    import vhost.mem.foreign as module

    patch = patch or pytest.MonkeyPatch()
    patch.setattr(module, "Privcmd", Privcmd)
    patch.setattr(module, "Control", Control)
    patch.setattr(module, "DeviceModel", DeviceModel)
    patch.setattr(module, "machine_frames", machine_frames)


def share_files() -> Callable[..., "Region"]:
    """Let the Xen build take guest memory that comes as a file: each is then the memory of a Xen domain.

    Tests of rings, devices and sessions share memory by memfd, as front-ends without Xen do. So that they run
    on the Xen build too, a region without xen flags is handed to it as a foreign region, and the stand-in
    finds the frames in the file. The tests of the Xen build itself undo this with what is returned.
    """
    from vhost.mem import Region
    from vhost.mem.xen import XenFlag, XenMemory

    install()
    installed = XenMemory._map
    one_at_a_time = threading.Lock()

    def map_file(self: XenMemory, spec: "RegionSpec", fd: int | None) -> "Region":
        if fd is None or spec.xen_flags:
            return installed(self, spec, fd)
        with one_at_a_time:
            state.memory, state.base = fd, spec.guest_addr - spec.offset
            try:
                region = installed(self, spec._replace(xen_flags=XenFlag.FOREIGN, domid=1), None)
            finally:
                state.memory, state.base = -1, 0
        return Region(spec, region.view, region.address, region.writable, region.guard, region.source)

    XenMemory._map = map_file  # type: ignore[method-assign]
    return installed
