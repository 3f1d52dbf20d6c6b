# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libblkio, a driver library of other authors (Rust, with a C interface), by ctypes; see blkio(3).

Only what the lab drives: one queue of a vhost-user block device and one region of memory.
"""

import ctypes
from collections.abc import Sequence
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_int,
    c_int64,
    c_long,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import archive
from tests.lab.peers import Peer

__all__ = ("LIBBLKIO", "Blkio", "BlkioError", "Completion", "load")


class BlkioError(Exception):
    """libblkio refuses; the text is its own."""


class Region(Structure):
    """struct blkio_mem_region"""

    _fields_ = (
        ("addr", c_void_p),
        ("len", c_size_t),
        ("iova", c_uint64),
        ("fd_offset", c_int64),
        ("fd", c_int),
        ("flags", c_uint32),
    )


class RawCompletion(Structure):
    """struct blkio_completion"""

    _fields_ = (
        ("user_data", c_void_p),
        ("error_msg", c_char_p),
        ("ret", c_int),
        ("reserved", c_uint8 * 12),
    )


class Timespec(Structure):
    """struct timespec"""

    _fields_ = (("tv_sec", c_long), ("tv_nsec", c_long))


SIGNATURES: dict[str, tuple[object, Sequence[object]]] = {
    "blkio_get_error_msg": (c_char_p, ()),
    "blkio_create": (c_int, (c_char_p, POINTER(c_void_p))),
    "blkio_destroy": (None, (POINTER(c_void_p),)),
    "blkio_connect": (c_int, (c_void_p,)),
    "blkio_start": (c_int, (c_void_p,)),
    "blkio_set_str": (c_int, (c_void_p, c_char_p, c_char_p)),
    "blkio_set_int": (c_int, (c_void_p, c_char_p, c_int)),
    "blkio_get_uint64": (c_int, (c_void_p, c_char_p, POINTER(c_uint64))),
    "blkio_alloc_mem_region": (c_int, (c_void_p, POINTER(Region), c_size_t)),
    "blkio_map_mem_region": (c_int, (c_void_p, POINTER(Region))),
    "blkio_get_queue": (c_void_p, (c_void_p, c_int)),
    "blkioq_read": (None, (c_void_p, c_uint64, c_void_p, c_size_t, c_void_p, c_uint32)),
    "blkioq_write": (None, (c_void_p, c_uint64, c_void_p, c_size_t, c_void_p, c_uint32)),
    "blkioq_write_zeroes": (None, (c_void_p, c_uint64, c_uint64, c_void_p, c_uint32)),
    "blkioq_discard": (None, (c_void_p, c_uint64, c_uint64, c_void_p, c_uint32)),
    "blkioq_flush": (None, (c_void_p, c_void_p, c_uint32)),
    "blkioq_do_io": (c_int, (c_void_p, POINTER(RawCompletion), c_int, c_int, POINTER(Timespec))),
}


def file() -> Path:
    # The library in the unpacked package; what it is called ends with its version.
    package = archive.unpacked(["libblkio1"], "trixie")
    return next(package.glob("usr/lib/*/libblkio.so.1")).resolve()


LIBBLKIO = Peer("libblkio", lambda: file().name.partition(".so.")[2])


def load() -> ctypes.CDLL:
    """The library in the cache, its functions typed.

    :raises Missing: this machine's apt cannot provide it.
    """
    library = ctypes.CDLL(str(file()), use_errno=True)
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request: the number given with it, and 0 or a negative errno."""

    token: int
    result: int


class Blkio:
    """A started block device and ``memory``, a buffer it can reach. A context manager.

    :param socket: of the vhost-user backend.
    :param memory: bytes of the buffer.
    :raises BlkioError: the library cannot drive this backend.
    """

    def __init__(self, library: ctypes.CDLL, socket: Path, memory: int) -> None:
        self._library, self._device, self._region = library, c_void_p(), Region()
        self.memory = memoryview(b"")
        self._check(library.blkio_create(b"virtio-blk-vhost-user", byref(self._device)))
        try:
            self._check(library.blkio_set_str(self._device, b"path", str(socket).encode()))
            self._check(library.blkio_connect(self._device))
            self._check(library.blkio_set_int(self._device, b"num-queues", 1))
            self._check(library.blkio_start(self._device))
            self._check(library.blkio_alloc_mem_region(self._device, byref(self._region), memory))
            self._check(library.blkio_map_mem_region(self._device, byref(self._region)))
        except BaseException:
            self.close()
            raise
        self._queue = library.blkio_get_queue(self._device, 0)
        buffer = (ctypes.c_char * memory).from_address(self._region.addr)
        self.memory = memoryview(buffer).cast("B")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def capacity(self) -> int:
        """Size of the disk in bytes."""
        value = c_uint64()
        self._check(self._library.blkio_get_uint64(self._device, b"capacity", byref(value)))
        return value.value

    def read(self, start: int, place: int, n: int, token: int) -> None:
        """Submits: ``n`` bytes of the disk from ``start`` to offset ``place`` of the memory."""
        self._library.blkioq_read(self._queue, start, self._region.addr + place, n, token, 0)

    def write(self, start: int, place: int, n: int, token: int) -> None:
        """Submits: ``n`` bytes at offset ``place`` of the memory to the disk, from ``start``."""
        self._library.blkioq_write(self._queue, start, self._region.addr + place, n, token, 0)

    def write_zeroes(self, start: int, n: int, token: int) -> None:
        """Submits: ``n`` bytes of the disk from ``start`` become zero."""
        self._library.blkioq_write_zeroes(self._queue, start, n, token, 0)

    def discard(self, start: int, n: int, token: int) -> None:
        """Submits: ``n`` bytes of the disk from ``start`` are not needed any more."""
        self._library.blkioq_discard(self._queue, start, n, token, 0)

    def flush(self, token: int) -> None:
        """Submits: what was written shall be safe."""
        self._library.blkioq_flush(self._queue, token, 0)

    def complete(self, n: int, seconds: int = 20) -> list[Completion]:
        """Waits until ``n`` submitted requests have finished, in whatever order.

        :raises BlkioError: they have not after ``seconds``.
        """
        raw, limit = (RawCompletion * n)(), Timespec(seconds, 0)
        self._check(self._library.blkioq_do_io(self._queue, raw, n, n, byref(limit)))
        return [Completion(entry.user_data or 0, entry.ret) for entry in raw]

    def close(self) -> None:
        """Ends the session with the backend; the memory is gone with it."""
        if self._device:
            self.memory.release()
            self._library.blkio_destroy(byref(self._device))

    def _check(self, result: int) -> None:
        if result < 0:
            raise BlkioError(self._library.blkio_get_error_msg().decode(errors="replace"))
