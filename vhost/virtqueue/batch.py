# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Chains popped together: one call into the C core takes them, one returns them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vhost._core import ffi, lib
from vhost.errors import DeviceError
from vhost.virtqueue.chain import Chain

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from vhost.mem import Deferred, Table
    from vhost.virtqueue.queue import Queue

__all__ = ("Batch",)

# Pages that no batch was large enough for yet are not touched.
_new = ffi.new_allocator(should_clear_after_alloc=False)


class Keeper:
    """Called when the pointer under a view is gone; until then it keeps the batch's memory mapped."""

    __slots__ = ("_keep",)

    def __init__(self, *keep: object) -> None:
        self._keep = keep

    def __call__(self, pointer: object) -> None:
        """Nothing to do but to have been held."""


class Batch:
    """Up to as many chains as ``Queue.pop`` was asked for; false when there were none.

    It keeps the memory it points into mapped until its last chain is pushed. ``cdata`` is the
    ``struct vh_batch`` for data paths in C, and ``chains`` its array of ``struct vh_chain``.
    """

    __slots__ = ("_keep", "_keeper", "_queue", "cdata", "chains", "mapped", "table", "views")

    def __init__(self, queue: "Queue", chains: int, pieces: int, deferred: int = 0, index: int = 0) -> None:
        self._queue = queue
        chain, iov = _new("struct vh_chain[]", chains), _new("struct vh_iov[]", pieces)
        log, defer = _new("uint64_t[]", pieces), _new("struct vh_defer[]", deferred)
        self._keep: tuple[Any, ...] = (iov, log, defer)
        self.chains = chain
        self.cdata = ffi.new(
            "struct vh_batch *",
            {
                "cap": chains,
                "cap_iov": pieces,
                "cap_defer": deferred,
                "chain": chain,
                "iov": iov,
                "log": log,
                "defer": defer,
                "index": index,
            },
        )
        self.table: Table | None = None
        self.mapped: Deferred | None = None
        self._keeper: Keeper | None = None
        #: What was given away of each chain's memory, and is taken back when the chain is complete.
        self.views: dict[int, list[memoryview]] = {}

    @property
    def index(self) -> int:
        """Number of the queue."""
        return self._queue.index

    @property
    def big_endian(self) -> bool:
        """Whether the fields of the requests are big-endian, as those of a legacy driver can be."""
        return self._queue.big_endian

    def __len__(self) -> int:
        return int(self.cdata.n)

    def __getitem__(self, index: int) -> Chain:
        if not 0 <= index < self.cdata.n:
            raise IndexError(f"chain {index} of a batch of {self.cdata.n}")
        return Chain(self, index)

    def __iter__(self) -> Iterator[Chain]:
        for index in range(self.cdata.n):
            yield Chain(self, index)

    def left(self) -> Iterator[Chain]:
        """The chains that are still the device's, after a data path in C has completed the others."""
        chains = self.chains
        for index in range(self.cdata.n):
            if chains[index].state == lib.VH_POPPED:
                yield Chain(self, index)

    @property
    def readable(self) -> int:
        """Bytes in the readable parts of all chains."""
        return lib.vh_batch_readable(self.cdata)

    @property
    def writable(self) -> int:
        """Bytes in the writable parts of all chains."""
        return lib.vh_batch_writable(self.cdata)

    def sizes(self) -> tuple[memoryview, memoryview]:
        """Bytes in the readable and in the writable part of each chain: two arrays of format ``Q``."""
        n = len(self)
        arrays = ffi.new("uint64_t[]", n), ffi.new("uint64_t[]", n)
        lib.vh_batch_sizes(self.cdata, *arrays)
        readable, writable = (memoryview(ffi.buffer(array)).cast("Q") for array in arrays)
        return readable, writable

    def gather(self, width: int) -> bytearray:
        """The first `width` bytes of each chain's readable part: as many rows as chains, zeroes where one is
        shorter.

        ``numpy.frombuffer(batch.gather(16), dtype)`` are the headers of the requests.
        """
        rows = bytearray(len(self) * width)
        lib.vh_batch_gather(self.cdata, ffi.from_buffer(rows), width)
        return rows

    def scatter(self, data: "ReadableBuffer", sizes: "ReadableBuffer | None" = None) -> int:
        """Deal `data` out over the writable parts in order and complete the chains that got some of it.

        A chain without room is completed empty. Call :meth:`push` after.

        :param data: any contiguous buffer: bytes, a memoryview, an array of numpy.
        :param sizes: bytes for each chain, an array of 8-byte integers, of which a chain takes what it has
            room for; None: as much as there is room for.
        :returns: the number of bytes dealt.
        :raises DeviceError: not as many sizes as chains.
        """
        source = ffi.from_buffer(data)
        if sizes is None:
            return lib.vh_batch_scatter(self.cdata, source, len(source), ffi.NULL)
        each = ffi.from_buffer("uint64_t[]", sizes)
        if len(each) != len(self):
            raise DeviceError(f"{len(each)} sizes of 8 bytes for {len(self)} chains")
        return lib.vh_batch_scatter(self.cdata, source, len(source), each)

    def keeper(self) -> Keeper:
        """What keeps this batch's memory mapped under views of it, for chains."""
        if self._keeper is None:
            self._keeper = Keeper(self.table, self.mapped.views if self.mapped else ())
        return self._keeper

    def release(self) -> None:
        """Let go of the memory: all chains are pushed, or lost with their ring. The queue calls this."""
        if self.mapped is not None:
            self.mapped.close()
        self.mapped = self.table = self._keeper = None
        self.views.clear()

    def drop_views(self, index: int) -> None:
        """Take the views of a chain back, whatever object they came from; chains call this.

        :raises DeviceError: one is still exported.
        """
        for view in self.views.get(index, ()):
            try:
                view.release()
            except BufferError as error:
                raise DeviceError(
                    f"chain {self.chains[index].head} is complete, but something still holds a view of it"
                ) from error
        self.views.pop(index, None)

    def push(self) -> None:
        """Return all chains to the driver: one index store, at most one notification.

        :raises DeviceError: a view of one of them is still exported.
        """
        for chain in self.left():
            chain.done()
        for index in tuple(self.views):
            self.drop_views(index)
        self._queue.push_done(self)

    def push_chain(self, chain: Chain) -> None:
        """Return one chain; ``chain.push()`` calls this."""
        chain.done()
        self._queue.push_done(self)
