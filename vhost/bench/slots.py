# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The requests of a load, laid out in guest memory: each in flight has buffers of its own, which it keeps."""

from typing import Any, Final

from vhost._core import ffi
from vhost.frontend.ram import Buffer, GuestRam

from .workload import NET_HEADER, Access, Workload

__all__ = ("Slots",)

_LINE: Final = 64
_PAGE: Final = 4096
_BLK_HEADER: Final = 16
_DATA: Final = 1  # which buffer of a disk's request holds the data
# A broadcast of the type for local experiments.
_FRAME: Final = bytes(NET_HEADER) + b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x88\xb5"


class Slots:
    """`depth` requests; `cdata` is the ``struct vh_bench_slot *`` of the C core.

    :raises MemoryError: `ram` does not hold them.
    """

    def __init__(self, ram: GuestRam, workload: Workload, depth: int) -> None:
        self.cdata = ffi.new("struct vh_bench_slot[]", depth)
        self._ram, self._workload, self._depth = ram, workload, depth
        self._keep: list[Any] = []
        places = [i % workload.regions for i in range(depth)]
        # Headers and status bytes side by side, a line each, as far from a page's start as they happen to be.
        count = 2 if workload.device == "blk" else 0
        small = [[ram.alloc(_LINE, _LINE, region=at) for _ in range(count)] for at in places]
        for slot, at, parts in zip(self.cdata, places, small, strict=True):
            self._fill(slot, at, parts)

    def _fill(self, slot: Any, region: int, parts: list[Buffer]) -> None:
        work = self._workload
        size = work.size + (NET_HEADER if work.device == "net" else 0)
        data = self._ram.alloc(size, _PAGE if size >= _PAGE else _LINE, region=region)
        if work.access is Access.SEND:
            data.view[:] = _FRAME[:size].ljust(size, b"\0")
        slot.data, slot.size = self._pointer(data), size
        bufs = [(data.gpa, size, work.access not in (Access.WRITE, Access.SEND))]
        if parts:
            header, status = parts
            bufs = [(header.gpa, _BLK_HEADER, False), *bufs, (status.gpa, 1, True)]
            slot.header, slot.status = self._pointer(header), self._pointer(status)
        slot.n = len(bufs)
        for i, buf in enumerate(bufs):
            slot.buf[i] = buf

    def _pointer(self, buffer: Buffer) -> Any:
        pointer = ffi.from_buffer("uint8_t[]", buffer.view, require_writable=True)
        self._keep.append(pointer)
        return pointer

    def turn(self, *, reads: bool) -> None:
        """Make the requests of a disk reads, or writes."""
        for slot in self.cdata[0 : self._depth]:
            slot.buf[_DATA].write = reads

    def close(self) -> None:
        """Let go of guest memory."""
        self._keep.clear()
