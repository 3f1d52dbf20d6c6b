# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The device's side of a virtqueue: takes chains from the driver, returns them used."""

from collections.abc import Iterator

from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError, VirtqueueError
from vhost.mem import GuestMemory, RingAccess, Table
from vhost.virtqueue.batch import Batch
from vhost.virtqueue.chain import Chain
from vhost.virtqueue.layout import RingLayout

__all__ = ("Queue",)

# Chains taken from the ring at once.
BATCH = 64
# Pieces a batch has room for beyond its longest chain: buffers of the others, and region borders.
PIECES = 1024

# By enum vh_error of csrc/api/*.h; the two numbers are vh_queue.info.
_WORDS = {
    lib.VH_E_AVAIL_JUMP: "the avail index is {0}, but the last entry taken was {1}: more than the ring holds",
    lib.VH_E_HEAD: "the avail ring names descriptor {0} of a ring of {1}",
    lib.VH_E_NEXT: "a descriptor's next is {0} in a table of {1} entries",
    lib.VH_E_LOOP: "the chain at descriptor {0} loops: step {1} comes back to a descriptor it had",
    lib.VH_E_CHAIN: "the chain at descriptor {0} has more than {1} descriptors",
    lib.VH_E_ORDER: "the chain at descriptor {0} has a readable buffer behind a writable one, at index {1}",
    lib.VH_E_NESTED: "the chain at descriptor {0} has an indirect table within an indirect one, at index {1}",
    lib.VH_E_INDIRECT_NEXT: "the chain at descriptor {0} has INDIRECT and NEXT set together, at index {1}",
    lib.VH_E_INDIRECT_LEN: "the chain at descriptor {0} has an indirect table of {1} bytes; entries are 16",
    lib.VH_E_NO_INDIRECT: "the chain at descriptor {0} is indirect at index {1}, which was not negotiated",
    lib.VH_E_UNMAPPED: "{1} bytes at guest address {0:#x} are not wholly in guest memory",
    lib.VH_E_PIECES: "the chain at descriptor {0} lies in more than {1} pieces of guest memory",
    lib.VH_E_TRUNCATED: "the file behind the region at guest address {0:#x} ({1} bytes) was truncated",
    lib.VH_E_READONLY: "{1} bytes at guest address {0:#x} are to be written, but the region is read-only",
}


class Queue:
    """A started virtqueue as devices see it.

    :param index: the queue's number in its device.
    :param layout: the ring's size.
    :param memory: guest memory; buffers are translated with the table it has when they are popped.
    :param rings: descriptor table, avail ring and used ring, mapped; closed with the queue.
    :param base: avail index to go on from. The used index goes on from the used ring.
    :param max_chain: descriptors a chain may have, by default the queue size (virtio 1.3, 2.7.5.3.1).
    :param call_fd: eventfd that notifies the driver, -1 for none; not owned.

    Synchronization: none; a queue belongs to one thread at a time, its ring's runner.
    """

    def __init__(
        self,
        index: int,
        layout: RingLayout,
        memory: GuestMemory,
        rings: tuple[RingAccess, RingAccess, RingAccess],
        *,
        base: int = 0,
        event_idx: bool = False,
        indirect: bool = False,
        max_chain: int | None = None,
        call_fd: int = -1,
    ) -> None:
        self.index = index
        self.size = layout.size
        #: While true, pop() returns nothing: the ring is about to stop.
        self.pausing = False
        #: Chains that cannot be returned, because the guest took back what their answers were for.
        self.lost = 0
        self._memory = memory
        self._rings = rings
        self._closed = False
        self._table: Table = memory.table
        self._free: list[Batch] = []
        descriptor, avail, used = rings
        limit = layout.size if max_chain is None else max_chain
        self._pieces = PIECES + limit
        self._q = ffi.new(
            "struct vh_queue *",
            {
                "mem": self._table.cdata,
                "desc": ffi.cast("void *", descriptor.address),
                "avail": ffi.cast("void *", avail.address),
                "used": ffi.cast("void *", used.address),
                "num": layout.size,
                "max_chain": limit,
                "features": (lib.VH_F_EVENT_IDX if event_idx else 0) | (lib.VH_F_INDIRECT if indirect else 0),
                "call_fd": call_fd,
                "next_avail": base,
                "next_used": ffi.cast("uint16_t *", used.address)[1],
            },
        )

    @property
    def base(self) -> int:
        """Avail index of the next chain to pop."""
        return int(self._q.next_avail)

    @property
    def call_fd(self) -> int:
        """The eventfd that notifies the driver, -1 for none."""
        return int(self._q.call_fd)

    @call_fd.setter
    def call_fd(self, fd: int) -> None:
        self._q.call_fd = fd

    @property
    def popped(self) -> int:
        """Chains taken since the queue was started."""
        return int(self._q.popped)

    @property
    def pushed(self) -> int:
        """Chains returned since the queue was started."""
        return int(self._q.pushed)

    @property
    def calls(self) -> int:
        """Notifications the driver wanted since the queue was started."""
        return int(self._q.calls)

    def pop(self, limit: int = BATCH) -> Batch:
        """Take up to ``limit`` chains, at most 64; an empty batch is false.

        :raises VirtqueueError: the driver broke the rules; those before the bad chain came first.
        """
        if self.pausing or self._closed:
            return Batch(self, 0, 0)
        batch = self._free.pop() if self._free else Batch(self, BATCH, self._pieces)
        table = self._memory.table
        if table is not self._table:
            self._table = table
            self._q.mem = table.cdata
        n = lib.vh_pop(self._q, batch.cdata, limit)
        if n > 0 and batch.cdata.n_defer:
            n = self._map(batch)
        if n <= 0:
            self._free.append(batch)
            if n < 0:
                raise VirtqueueError(self._error())
        else:
            batch.table = table
        return batch

    def __iter__(self) -> Iterator[Chain]:
        """The chains there are, popped in batches; each is to be pushed by whoever takes it."""
        while batch := self.pop():
            yield from batch

    def push_done(self, batch: Batch) -> None:
        """Return the completed chains of a batch; batches and chains call this.

        A closed queue has nobody to return them to: then they only give their memory back.
        """
        if self._closed:
            batch.release()
            return
        if batch.mapped is not None:
            # The grants of a batch are mapped in one call, and given back before the driver hears of it.
            if lib.vh_batch_left(batch.cdata):
                return
            self._give_back(batch)
        lib.vh_push(self._q, batch.cdata)
        if not batch.cdata.pending:
            batch.release()
            self._free.append(batch)

    def kicks_off(self) -> None:
        """Ask the driver for no kicks while the queue is served anyway."""
        if not self._closed:
            lib.vh_kicks_off(self._q)

    def kicks_on(self) -> bool:
        """Ask for kicks again; true if chains came meanwhile, for which no kick may follow."""
        return not self._closed and bool(lib.vh_kicks_on(self._q))

    def available(self) -> bool:
        """Whether there is a chain to pop."""
        return not self._closed and bool(lib.vh_available(self._q))

    def close(self) -> None:
        """Give the ring's memory back. Whoever still has the queue finds it empty from now on."""
        self._closed = True
        for ring in self._rings:
            ring.close()
        self._free.clear()
        self._table = Table()

    def _map(self, batch: Batch) -> int:
        try:
            n = self._map_all(batch)
        except GuestMemoryError as error:
            self._put_back(batch)
            if len(batch) == 1:
                raise VirtqueueError(f"queue {self.index}: {error}") from error
        else:
            if n < 0:
                self._put_back(batch)
            return n
        # One grant of many is bad, or they are too many for one call: one chain now, so up to the bad one.
        n = lib.vh_pop(self._q, batch.cdata, 1)
        return self._map(batch) if n > 0 and batch.cdata.n_defer else n

    def _put_back(self, batch: Batch) -> None:
        # What was popped and cannot be served is on the ring still.
        self._q.next_avail = (self._q.next_avail - len(batch)) & 0xFFFF
        self._q.popped -= len(batch)

    def _map_all(self, batch: Batch) -> int:
        # Buffers in grant regions, all of the batch together; before them their indirect tables.
        b, n = batch.cdata, len(batch)
        if b.n_tables:
            with self._memory.map_deferred(b.defer, b.n_tables):
                n = lib.vh_expand(self._q, b)
        if n > 0 and b.n_defer:
            batch.mapped = self._memory.map_deferred(b.defer, b.n_defer)
            lib.vh_batch_place(b)
        return n

    def _give_back(self, batch: Batch) -> None:
        assert batch.mapped is not None
        try:
            if copies := lib.vh_grants_written(batch.cdata):
                batch.mapped.store(copies)
        except GuestMemoryError as error:
            # Those whose answers arrived are the driver's again; for the others there is no way back.
            self.lost += lib.vh_grants_lose(batch.cdata)
            batch.release()
            lib.vh_push(self._q, batch.cdata)
            raise VirtqueueError(f"queue {self.index}: {error}") from error
        batch.release()

    def _error(self) -> str:
        first, second = self._q.info
        return f"queue {self.index}: {_WORDS[self._q.error].format(first, second)}"
