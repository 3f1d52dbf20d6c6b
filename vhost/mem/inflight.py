# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The memory in which rings record what is in flight, kept by the front-end while a back-end is restarted."""

import mmap
import os
from dataclasses import dataclass
from typing import Any, Final, final

from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError

__all__ = ("InflightSpec", "InflightRegion")

_MAX_QUEUES: Final = 256
_MAX_SIZE: Final = 32768
# Bytes: counters are written at once.
_ALIGN: Final = 8


@dataclass(frozen=True, slots=True)
class InflightSpec:
    """What a message says of the region (vhost-user, "Inflight description").

    :param size: bytes of the whole region.
    :param offset: where in its file it begins.
    :param num_queues: rings that have a part of it.
    :param queue_size: entries of each ring.
    """

    size: int
    offset: int
    num_queues: int
    queue_size: int

    def __str__(self) -> str:
        return (
            f"inflight region of {self.size:#x} bytes at {self.offset:#x} "
            f"for {self.num_queues} rings of {self.queue_size}"
        )


@final
class InflightRegion:
    """The mapped region. How far apart the parts of two rings are is not said by anybody, so they share it
    evenly.

    :param fd: the file; it stays the caller's.
    :raises GuestMemoryError: the file or the region is too short for what it is to hold.
    :raises OSError: it cannot be mapped.
    """

    def __init__(self, fd: int, spec: InflightSpec) -> None:
        self.spec = spec
        if not 0 < spec.num_queues <= _MAX_QUEUES or not 0 < spec.queue_size <= _MAX_SIZE:
            raise GuestMemoryError(f"{spec}: 1 to {_MAX_QUEUES} rings of 1 to {_MAX_SIZE} are possible")
        end = os.fstat(fd).st_size
        if spec.offset < 0 or not 0 < spec.size <= end - spec.offset:
            raise GuestMemoryError(f"{spec}: its file has {end:#x} bytes")
        start = spec.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        self._map = mmap.mmap(fd, spec.size + spec.offset - start, offset=start)
        self._view = memoryview(self._map)[spec.offset - start :]
        self._base: Any = ffi.from_buffer(self._view)
        address = int(ffi.cast("uintptr_t", self._base))
        # A truncated file is the front-end's fault, and no reason to end.
        self._guard = lib.vh_guard_add(ffi.cast("void *", address), spec.size)
        if self._guard < 0:
            self.close()
            raise OSError(-self._guard, f"cannot guard the {spec}: {os.strerror(-self._guard)}")

    @classmethod
    def create(cls, num_queues: int, queue_size: int, *, packed: bool) -> "tuple[InflightRegion, int]":
        """A new region in a memfd, which is returned with it and belongs to the caller."""
        stride = _need(queue_size, packed)
        spec = InflightSpec(stride * num_queues, 0, num_queues, queue_size)
        fd = os.memfd_create("vhost-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, spec.size)
            region = cls(fd, spec)
        except BaseException:
            os.close(fd)
            raise
        for index in range(num_queues):
            lib.vh_inflight_format(region._base + index * stride, queue_size, packed)
        return region, fd

    def holds(self, index: int, size: int) -> bool:
        """Whether it was made for a ring `index` of `size` entries."""
        return index < self.spec.num_queues and size <= self.spec.queue_size

    def part(self, index: int, size: int, *, packed: bool) -> int:
        """Host address of the part of ring `index`, which has `size` entries and which the region holds.

        :raises GuestMemoryError: the region is not what it is said to be.
        """
        spec = self.spec
        stride = spec.size // spec.num_queues
        address = int(ffi.cast("uintptr_t", self._base)) + index * stride
        if address % _ALIGN:
            raise GuestMemoryError(f"ring {index}: its part of the {spec} is not aligned to {_ALIGN} bytes")
        if _room(size, packed) > stride:
            raise GuestMemoryError(
                f"ring {index} of {size} entries: {spec} has {stride} bytes for each ring, "
                f"{_room(size, packed)} are needed"
            )
        return address

    def close(self) -> None:
        """Unmap it; no queue may use it any more. Closing twice is harmless."""
        if self._base is None:
            return
        if self._guard > 0:
            lib.vh_guard_remove(self._guard)
        self._base = None
        self._view.release()
        self._map.close()


def _need(size: int, packed: bool) -> int:
    return int(lib.vh_inflight_size(size, packed))


def _room(size: int, packed: bool) -> int:
    # Without the padding to a cache line that some peers leave out.
    return 32 + 32 * size if packed else 16 + 16 * size
