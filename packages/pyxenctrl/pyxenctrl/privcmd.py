# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The device ``/dev/xen/privcmd`` itself (Linux, include/uapi/xen/privcmd.h), for mapping frames.

For what libxenforeignmemory cannot do: it waits for ever for frames that are paged out
(tools/libs/foreignmemory/linux.c), and uses no descriptor but its own. Here the caller decides how long to
try, where frames are mapped, and through which descriptor.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from array import array
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final, final

from pyxenctrl.handle import PAGE_SIZE, Handle, Protection

__all__ = ("DEVICE", "MMAPBATCH_V2", "RESTRICT", "Privcmd", "is_privcmd")

DEVICE: Final = Path("/dev/xen/privcmd")

#: ioctl numbers, and the arguments in the notation of struct.
MMAPBATCH_V2: Final = 0x205004
RESTRICT: Final = 0x025006
_BATCH: Final = struct.Struct("@IHQQQ")  # frames, domain, address, their numbers, their errors
_DOMAIN: Final = struct.Struct("@H")

_PROT_NONE: Final = 0
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000


@cache
def _libc() -> ctypes.CDLL:
    lib = ctypes.CDLL(None, use_errno=True)
    lib.mmap.restype = ctypes.c_void_p
    lib.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    return lib


def is_privcmd(fd: int) -> bool:
    """Whether a descriptor is that device, by what the kernel calls it.

    :raises OSError: EBADF: it is no descriptor.
    """
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode):
        return False
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    try:
        uevent = Path("/sys/dev/char", device, "uevent").read_text()
    except OSError:
        return False
    return "DEVNAME=xen/privcmd" in uevent.splitlines()


@final
class Privcmd(Handle):
    """The device, opened here or by somebody else. What it mapped stays when it is closed.

    :param fd: an open descriptor of it, which stays the caller's; otherwise the device is opened.
    :raises OSError: it cannot be opened.
    """

    def __init__(self, fd: int | None = None) -> None:
        #: Whether it was opened here.
        self.own: Final = fd is None
        super().__init__(_opened() if fd is None else os.dup(fd))

    def map(
        self, address: int, domid: int, frames: "memoryview | array[int]", protection: Protection
    ) -> tuple[tuple[int, int], ...]:
        """Map frames next to each other from an address on, over address space that the caller has reserved.

        The caller unmaps them. When this raises, the range is reserved as before: mapped without access.

        :param frames: guest frame numbers (machine frames of a PV domain), 64 bits each.
        :returns: position and errno of frames that are not there; touching them raises SIGBUS. ENOENT: paged
            out for now, see :meth:`retry`; EINVAL, EPERM: no such frame; ESRCH: no such domain.
        :raises OSError: EPERM: the descriptor is restricted to another domain; EACCES: it is not open for
            reading and writing; ENOTTY: it is not the device.
        """
        view = _numbers(frames)
        n = len(view) * PAGE_SIZE
        with self._live() as fd:
            try:
                _place(address, n, protection, mmap.MAP_SHARED, fd)
                # The first call must cover the whole mapping: the kernel prepares it then.
                return tuple(_batch(fd, address, domid, view, 0, len(view)))
            except BaseException:
                _place(address, n, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
                raise

    def retry(
        self, address: int, domid: int, frames: "memoryview | array[int]", indexes: Iterable[int]
    ) -> tuple[tuple[int, int], ...]:
        """Map some frames of an earlier :meth:`map` again, which were paged out then.

        :param address: where the first frame is, of all.
        :param indexes: positions of the frames to try.
        :returns: position and errno of those that are still not there.
        :raises OSError: EINVAL: one of them is mapped already; others: as for :meth:`map`.
        """
        view = _numbers(frames)
        failed: list[tuple[int, int]] = []
        with self._live() as fd:
            for first, count in _runs(indexes):
                failed += _batch(fd, address, domid, view, first, count)
        return tuple(failed)

    def restrict(self, domid: int) -> None:
        """Let the descriptor map memory of one domain only from now on, for whoever else has it too.

        That cannot be undone. What is mapped stays; other domains are EPERM.

        :raises OSError: EINVAL: it is restricted to another domain.
        """
        with self._live() as fd:
            try:
                fcntl.ioctl(fd, RESTRICT, _DOMAIN.pack(domid))
            except OSError as error:
                raise _worded(error, f"cannot restrict the descriptor to domain {domid}") from error

    def _close(self, pointer: int) -> None:
        os.close(pointer)


def _opened() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _worded(
            error,
            f"cannot open {DEVICE} (is this a privileged Xen domain, and is the module xen-privcmd loaded?)",
        ) from error


def _worded(error: OSError, what: str) -> OSError:
    return OSError(error.errno, f"{what}: {error.strerror}")


def _numbers(frames: "memoryview | array[int]") -> memoryview:
    view = memoryview(frames)
    if view.itemsize != 8 or not view.c_contiguous:
        raise TypeError(f"frame numbers have 64 bits each, and are next to each other (not {view.format!r})")
    if not len(view):
        raise ValueError("mapping no frames at all")
    # ctypes gives the address of writable memory only.
    return memoryview(bytearray(view)).cast("Q") if view.readonly else view


def _place(address: int, n: int, protection: int, flags: int, fd: int) -> None:
    # Replace what is mapped at an address.
    if _libc().mmap(address, n, protection, flags | _MAP_FIXED, fd, 0) != address:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map {n:#x} bytes at {address:#x}: {os.strerror(code)}")


def _batch(
    fd: int, address: int, domid: int, frames: memoryview, first: int, count: int
) -> list[tuple[int, int]]:
    # Map `count` of the frames from the `first` on; their positions and errnos when they failed.
    numbers = (ctypes.c_uint64 * count).from_buffer(frames, first * 8)
    errors = array("i", bytes(count * 4))
    request = _BATCH.pack(
        count,
        domid,
        address + first * PAGE_SIZE,
        ctypes.addressof(numbers),
        errors.buffer_info()[0],
    )
    try:
        fcntl.ioctl(fd, MMAPBATCH_V2, request)
    except OSError as error:
        # ENOENT only says that some of them are paged out.
        if error.errno != errno.ENOENT:
            what = f"cannot map {count} frames of domain {domid} from frame {numbers[0]:#x} on"
            raise _worded(error, what) from error
    if not any(errors):
        return []
    return [(first + index, abs(code)) for index, code in enumerate(errors) if code]


def _runs(indexes: Iterable[int]) -> Iterator[tuple[int, int]]:
    # (first, count) of positions that follow each other.
    first = count = 0
    for index in sorted(indexes):
        if count and index == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count
