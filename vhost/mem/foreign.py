# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Memory of a Xen domain by foreign mapping: whole regions, by frame number.

Uses the device rather than libxenforeignmemory, which waits for ever for a frame that is paged out, opens the
device itself and cannot lay pieces out side by side without leaving a hole when one fails.
"""

import errno
import os
import platform
from array import array
from functools import partial
from typing import Any, Final

from pyxenctrl import PAGE_SIZE, Privcmd, Protection, is_privcmd
from pyxenctrl.control import Control
from pyxenctrl.devicemodel import DeviceModel
from pyxenctrl.guest import machine_frames
from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError
from vhost.mem.regions import Region, RegionSpec, host_view
from vhost.mem.retry import retry

__all__ = ("MAX_FRAMES", "map_foreign")

#: Frames in one foreign region, 256 GiB.
MAX_FRAMES: Final = 1 << 26
#: Frames in one call, 64 MiB: its tables have 12 bytes for each.
CHUNK: Final = 1 << 14

_BOTH: Final = Protection.READ | Protection.WRITE


def map_foreign(spec: RegionSpec, fd: int | None) -> Region:
    """A region of whole pages, mapped.

    :param fd: what the front-end sent; it is used if it is privcmd and we may not open that ourselves.
    :raises GuestMemoryError: there is no such domain, or a frame of it cannot be mapped.
    :raises OSError: Xen's devices or libraries are not there.
    """
    device, frames = _open(spec, fd)
    with device:
        address = _reserve(spec.size)
        try:
            for start in range(0, len(frames), CHUNK):
                chunk = frames[start : start + CHUNK]
                _map_chunk(device, address + start * PAGE_SIZE, spec, start, array("Q", chunk))
            # Touching a frame that is gone raises SIGBUS, as beyond the end of a truncated file.
            slot = lib.vh_guard_add(ffi.cast("void *", address), spec.size)
            if slot < 0:
                raise OSError(-slot, f"cannot guard {spec} against frames going away: {os.strerror(-slot)}")
        except BaseException:
            lib.munmap(ffi.cast("void *", address), spec.size)
            raise
    view = host_view(address, spec.size, partial(_unmap, address, spec.size, slot))
    return Region(spec, view, address, writable=True, guard=slot)


def _open(spec: RegionSpec, fd: int | None) -> "tuple[Privcmd, range | array[int]]":
    # What maps, and the frames it takes: machine frames for a PV domain, the guest's own for the others.
    first = spec.guest_addr // PAGE_SIZE
    frames = range(first, first + spec.size // PAGE_SIZE)
    try:
        device = Privcmd()
    except OSError:
        if fd is None or not is_privcmd(fd):
            raise
        # We may not ask Xen either, what kind of domain it is; who passes the device knows.
        return Privcmd(fd), frames
    try:
        found = _translated(spec, frames)
        try:
            device.restrict(spec.domid)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):  # kernels before 4.14
                raise
    except BaseException:
        device.close()
        raise
    return device, found


def _translated(spec: RegionSpec, frames: range) -> "range | array[int]":
    if not _is_pv(spec):
        return frames
    try:
        with Control() as control, machine_frames(control, spec.domid) as table:
            return table.lookup(frames.start, len(frames))
    except (OSError, IndexError) as error:
        raise GuestMemoryError(f"{spec}: machine frames of PV domain {spec.domid}: {error}") from error


def _is_pv(spec: RegionSpec) -> bool:
    # Only x86 has PV domains. No device model can serve one: unlike libxenctrl, that is asked for in the same
    # way on every version of Xen.
    if platform.machine() not in ("x86_64", "i686"):
        return False
    with DeviceModel() as model:
        try:
            model.nr_vcpus(spec.domid)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise GuestMemoryError(f"{spec}: there is no domain {spec.domid}") from error
            if error.errno != errno.EINVAL:
                raise
            return True
    return False


def _map_chunk(device: Privcmd, address: int, spec: RegionSpec, start: int, frames: "array[int]") -> None:
    # Frames that are paged out come back for who asks again; anything else is final.
    failed: tuple[tuple[int, int], ...] | None = None

    def attempt() -> None:
        nonlocal failed
        if failed is None:
            failed = device.map(address, spec.domid, frames, _BOTH)
        else:
            failed = device.retry(address, spec.domid, frames, [index for index, _ in failed])
        if failed:
            lasting = [code for _, code in failed if code != errno.ENOENT]
            raise OSError(lasting[0] if lasting else errno.ENOENT, _words(spec, start, len(frames), failed))

    try:
        retry(attempt, errno.ENOENT)
    except OSError as error:
        raise GuestMemoryError(f"{spec}, domain {spec.domid}: {error.strerror}") from error


def _words(spec: RegionSpec, start: int, count: int, failed: tuple[tuple[int, int], ...]) -> str:
    first = spec.guest_addr // PAGE_SIZE + start
    some = ", ".join(f"{first + index:#x} ({os.strerror(code)})" for index, code in failed[:8])
    more = f" and {len(failed) - 8} more" if len(failed) > 8 else ""
    return f"{len(failed)} of {count} frames cannot be mapped: {some}{more}"


def _reserve(size: int) -> int:
    flags = lib.MAP_PRIVATE | lib.MAP_ANONYMOUS | lib.MAP_NORESERVE
    found = lib.mmap(ffi.NULL, size, lib.PROT_NONE, flags, -1, 0)
    if found == ffi.cast("void *", -1):
        code = ffi.errno
        raise OSError(code, f"cannot reserve {size:#x} bytes for guest memory: {os.strerror(code)}")
    return int(ffi.cast("uintptr_t", found))


def _unmap(address: int, size: int, slot: int, _: Any) -> None:
    lib.vh_guard_remove(slot)
    lib.munmap(ffi.cast("void *", address), size)
