# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One request of the driver: a readable and a writable part, in guest memory, without copies.

The parts are seen as flat byte ranges: how the driver cut them into descriptors says nothing (virtio 1.3,
2.7.4).
"""

from typing import TYPE_CHECKING

from vhost._core import ffi, lib
from vhost.errors import DeviceError

if TYPE_CHECKING:
    from vhost.virtqueue.batch import Batch

__all__ = ("Buffer", "Chain")

_COMPLETE = "this chain is complete; its buffers belong to the driver again"

#: What data is taken from and copied to.
Buffer = bytes | bytearray | memoryview


class Chain:
    """A chain of buffers popped from a queue, the device's until it is pushed.

    Synchronization: none; it belongs to the thread that its queue belongs to.
    """

    __slots__ = ("_batch", "_c", "_index", "_read_at", "_write_at")

    def __init__(self, batch: "Batch", index: int) -> None:
        self._batch = batch
        self._index = index
        self._c = batch.chains + index
        self._read_at = 0
        self._write_at = 0

    @property
    def head(self) -> int:
        """Index of the first descriptor, the chain's name on the ring."""
        return int(self._c.head)

    @property
    def queue(self) -> int:
        """Number of the queue it came from."""
        return self._batch.index

    @property
    def big_endian(self) -> bool:
        """Whether the driver is a legacy one on a big-endian machine, as are the fields of its requests."""
        return self._batch.big_endian

    @property
    def readable(self) -> int:
        """Bytes in the part that the device reads."""
        return int(self._c.read_len)

    @property
    def writable(self) -> int:
        """Bytes in the part that the device writes."""
        return int(self._c.write_len)

    @property
    def written(self) -> int:
        """Bytes written so far from the start of the writable part: the length the driver is told."""
        return int(self._c.written)

    @property
    def pushed(self) -> bool:
        """Whether the chain is back with the driver."""
        return bool(self._c.state == lib.VH_PUSHED)

    def read(self, n: int = -1) -> bytes:
        """The next ``n`` bytes of the readable part, all that is left if negative; fewer at its end."""
        left = self.readable - self._read_at
        data = bytearray(left if n < 0 else min(n, left))
        self.readinto(data)
        return bytes(data)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer`` with the next bytes of the readable part; returns how many there were."""
        to = ffi.from_buffer(buffer, require_writable=True)
        n = lib.vh_chain_read(self._batch.cdata, self._c, self._read_at, to, len(to))
        if n < 0:
            raise DeviceError(_COMPLETE)
        self._read_at += n
        return n

    def write(self, data: Buffer) -> int:
        """Append ``data`` to what was written; returns the bytes for which there was room."""
        n = self.write_at(self._write_at, data)
        self._write_at += n
        return n

    def write_at(self, offset: int, data: Buffer) -> int:
        """Write ``data`` at ``offset`` of the writable part; returns the bytes for which there was room.

        The used length becomes the end of what was written last, or stays if it is larger.
        """
        if offset < 0:
            raise ValueError(f"offset {offset}: the writable part begins at 0")
        source = data if type(data) is bytes else ffi.from_buffer(data)
        n = lib.vh_chain_write(self._batch.cdata, self._c, offset, source, len(source))
        if n < 0:
            raise DeviceError(_COMPLETE)
        return n

    def readable_iov(self, start: int = 0, n: int | None = None) -> list[memoryview]:
        """Views of bytes ``[start, start + n)`` of the readable part, for ``os.pwritev``.

        They are released when the chain is pushed.
        """
        return self._slice(self._c.iov, self._c.n_read, start, n, writable=False)

    def writable_iov(self, start: int = 0, n: int | None = None) -> list[memoryview]:
        """Views of bytes ``[start, start + n)`` of the writable part, for ``os.preadv``.

        Say :meth:`wrote` after. They are released when the chain is pushed.
        """
        return self._slice(self._c.iov + self._c.n_read, self._c.n_write, start, n, writable=True)

    def wrote(self, n: int) -> None:
        """Say that the first ``n`` bytes of the writable part are written.

        :raises DeviceError: there are not as many.
        """
        self._check()
        if n > self.writable:
            raise DeviceError(f"{n} bytes said to be written to a chain with room for {self.writable}")
        self._c.written = max(self._c.written, min(n, 0xFFFFFFFF))

    def push(self) -> None:
        """Return the chain to the driver, which is told :attr:`written`."""
        self._batch.push_chain(self)

    def done(self) -> None:
        """Mark the chain complete, to be returned by the batch's next push; its views are released.

        :raises DeviceError: it was pushed already, or a view of it is still exported.
        """
        if self._batch.views:
            self._check()
            self._batch.drop_views(self._index)
        if lib.vh_chain_done(self._c) < 0:
            raise DeviceError(_COMPLETE)

    def _check(self) -> None:
        if self._c.state != lib.VH_POPPED:
            raise DeviceError(_COMPLETE)

    def _slice(
        self, first: int, count: int, start: int, n: int | None, *, writable: bool
    ) -> list[memoryview]:
        self._check()
        iov, views, left = self._batch.cdata.iov, [], n
        for i in range(first, first + count):
            base, size = iov[i].base, iov[i].len
            if start >= size:
                start -= size
                continue
            take = size - start if left is None else min(size - start, left)
            if take == 0:
                break
            # Slices that outlive the chain keep the memory mapped: buffer, pointer, keeper, mappings.
            pointer = ffi.gc(ffi.cast("char *", base) + start, self._batch.keeper())
            view = memoryview(ffi.buffer(pointer, take))
            views.append(view if writable else view.toreadonly())
            left = None if left is None else left - take
            start = 0
        self._batch.views.setdefault(self._index, []).extend(views)
        return views
