# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The device's side of a virtqueue: takes chains from the driver, returns them used."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from vhost._core import ffi, lib
from vhost.errors import GuestMemoryError, VirtqueueError
from vhost.mem import DirtyLog, GuestMemory, RingAccess, Table
from vhost.virtqueue.batch import Batch
from vhost.virtqueue.chain import Chain
from vhost.virtqueue.layout import RingLayout
from vhost.virtqueue.steps import Steps

__all__ = ("Miss", "Queue", "Translation")

# Chains taken from the ring at once.
BATCH = 64
# Pieces a batch has room for beyond its longest chain: buffers of the others, and region borders.
PIECES = 1024

# Buffers without a translation that are looked for at once.
LACKS = 64

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
    lib.VH_E_INFLIGHT: "its inflight region contradicts itself at entry {0} of {1}",
}

_WRAP = 0x8000


class Miss(NamedTuple):
    """A range of I/O addresses whose translation a ring needs.

    :ivar write: it is to be written, otherwise read.
    """

    address: int
    size: int
    write: bool


class Translation(Protocol):
    """Where the I/O addresses of a guest with an IOMMU lie, as far as that is known: see
    :mod:`vhost.mem.iotlb`."""

    @property
    def table(self) -> Table: ...


class Queue:
    """A started virtqueue as devices see it.

    :param index: the queue's number in its device.
    :param layout: the ring's size, and its kind.
    :param memory: guest memory; buffers are translated with the table it has when they are popped.
    :param rings: the three parts of the ring, mapped; closed with the queue.
    :param base: where to go on. A split ring: the avail index; the used index goes on from the used ring.
        A packed ring: both positions and wrap counters (vhost-user, "A vring descriptor index for packed
        virtqueues").
    :param in_order: the driver wants its buffers back in its order (IN_ORDER).
    :param big_endian: a split ring of a legacy driver on a big-endian machine.
    :param max_chain: descriptors a chain may have, by default the queue size (virtio 1.3, 2.7.5.3.1).
    :param call_fd: eventfd that notifies the driver, -1 for none; not owned.
    :param translation: buffers have I/O addresses, which this translates.
    :param inflight: host address of the ring's part of an inflight region, 0 for none. What was in flight
        when it was last used is popped again first.
    :raises VirtqueueError: the inflight region contradicts itself.

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
        in_order: bool = False,
        big_endian: bool = False,
        max_chain: int | None = None,
        call_fd: int = -1,
        translation: Translation | None = None,
        inflight: int = 0,
    ) -> None:
        self.index = index
        self.size = layout.size
        #: Whether the ring is a packed one.
        self.packed = layout.packed
        #: Whether the driver is a legacy one on a big-endian machine, as are the fields of its requests.
        self.big_endian = big_endian and not layout.packed
        #: While true, pop() returns nothing: the ring is about to stop.
        self.pausing = False
        #: Chains that pop() may still return before others have their turn; who serves the ring sets it.
        self.budget = 1 << 62
        #: Chains that cannot be returned, because the guest took back what their answers were for.
        self.lost = 0
        #: The request that is served in steps; until it is done pop() returns nothing.
        self.steps: Steps | None = None
        #: The translation for want of which pop() returned nothing.
        self.miss: Miss | None = None
        #: Whether buffers are mapped for their use, so that chains must be returned by :meth:`push_done`.
        self.defers = memory.uses_xen
        self._memory = memory
        self._source: Translation = memory if translation is None else translation
        self._rings = rings
        self._closed = False  # there is no ring, for ever or while it is away
        self._waiting: list[Batch] | None = None  # what came back while it is away
        self._table: Table = self._source.table
        self._before: list[Table] = []  # tables that the core may still look at
        self._log: DirtyLog | None = None
        self._free: list[Batch] = []
        limit = layout.size if max_chain is None else max_chain
        self._pieces = PIECES + limit
        features = lib.VH_F_EVENT_IDX if event_idx else 0
        features |= lib.VH_F_INDIRECT if indirect else 0
        features |= lib.VH_F_IN_ORDER if in_order else 0
        features |= lib.VH_F_TRANSLATED if translation is not None else 0
        descriptor, avail, used = rings
        self._keep: list[Any] = [ffi.new("uint8_t[]", 16 * limit)]
        #: ``struct vh_queue *``, for data paths in C.
        self.cdata = self._q = ffi.new(
            "struct vh_queue *",
            {
                "mem": self._table.cdata,
                "desc": ffi.cast("void *", descriptor.address),
                "avail": ffi.cast("void *", avail.address),
                "used": ffi.cast("void *", used.address),
                "num": layout.size,
                "max_chain": limit,
                "features": features,
                "scratch": self._keep[0],
            },
        )
        if in_order:
            turns = 1 << (layout.size - 1).bit_length()
            self._keep.append(ffi.new("struct vh_turn[]", turns))
            self._q.turns, self._q.num_turns = self._keep[-1], turns
        self.call_fd = call_fd
        self._begin(base)
        self._record(inflight)

    def _begin(self, base: int) -> None:
        q = self._q
        if self.packed:
            q.kind = lib.VH_PACKED
            q.next_avail, q.avail_wrap = base & ~_WRAP & 0xFFFF, bool(base & _WRAP)
            q.next_used, q.used_wrap = base >> 16 & ~_WRAP, bool(base >> 16 & _WRAP)
            if max(q.next_avail, q.next_used) >= self.size:
                raise VirtqueueError(f"queue {self.index}: base {base:#x} is outside a ring of {self.size}")
        else:
            q.kind = lib.VH_SPLIT_BIG if self.big_endian else lib.VH_SPLIT
            q.next_avail = base

    def _record(self, inflight: int) -> None:
        q = self._q
        if inflight:
            again = ffi.new("struct vh_again[]", self.size)
            following = ffi.new("uint16_t[]", self.size)
            table = ffi.new("uint8_t[]", 16 * self.size)
            self._keep += again, following, table
            q.inflight.again, q.inflight.next, q.inflight.table = again, following, table
            q.inflight.region = ffi.cast("void *", inflight)
        if error := lib.vh_queue_init(q):
            q.error = -error
            raise VirtqueueError(self.error())

    @property
    def base(self) -> int:
        """Where to go on after the last chain popped; see the parameter of the same name."""
        q = self._q
        if not self.packed:
            return int(q.next_avail)
        avail = q.next_avail | (_WRAP if q.avail_wrap else 0)
        return int(avail | (q.next_used | (_WRAP if q.used_wrap else 0)) << 16)

    @property
    def table(self) -> Table:
        """The table with which chains are popped now."""
        return self._table

    @property
    def call_fd(self) -> int:
        """The eventfd that notifies the driver, -1 for none."""
        return int(self._q.call_fd)

    @call_fd.setter
    def call_fd(self, fd: int) -> None:
        self._q.call_fd, self._q.call_checked = fd, fd >= 0 and not lib.vh_is_counter(fd)

    def check_calls(self) -> None:
        """Never wait in a call, which only another thread could end."""
        self._q.call_checked = True

    @property
    def popped(self) -> int:
        """Chains taken since the queue was started."""
        return int(self._q.popped)

    @property
    def pushed(self) -> int:
        """Chains returned since the queue was started."""
        return int(self._q.pushed)

    @property
    def held(self) -> int:
        """Chains that are with the device."""
        return self.popped - self.pushed - self.lost

    @property
    def again(self) -> int:
        """Chains that were in flight when somebody else served the ring, and that are popped first."""
        return int(self._q.inflight.n_again)

    @property
    def calls(self) -> int:
        """Notifications the driver wanted since the queue was started."""
        return int(self._q.calls)

    def log_to(
        self, log: DirtyLog | None, *, data: bool = False, used: int | None = None, ring: int = 0
    ) -> None:
        """Mark what is written from now on in a dirty log; only while nobody serves the queue.

        :param data: what the device writes to buffers.
        :param used: what is written to the ring: guest-physical address of the used ring (packed: of the
            device's event suppression), None: it is not.
        :param ring: guest-physical address of the descriptors, where a packed ring has its used ones.
        """
        self._log = log  # keeps it
        q = self._q
        q.log = ffi.NULL if log is None else log.cdata
        q.features &= ~(lib.VH_F_LOG_DATA | lib.VH_F_LOG_USED)
        if log is not None:
            q.features |= lib.VH_F_LOG_DATA if data else 0
            q.features |= lib.VH_F_LOG_USED if used is not None else 0
            q.log_used, q.log_desc = used or 0, ring

    def refresh(self) -> None:
        """Take over a new table of guest memory.

        Only one thread may do so: who pops, or another one where nothing but a data path in C pops.
        """
        table, before = self._source.table, self._table
        if table is before:
            return
        self._table = table
        held = lib.vh_queue_swap(self._q, table.cdata)
        self._before = [old for old in (*self._before, before) if held and old.cdata == held]

    def pop(self, limit: int = BATCH) -> Batch:
        """Take up to ``limit`` chains, at most 64; an empty batch is false.

        :raises VirtqueueError: the driver broke the rules; those before the bad chain came first.
        """
        if self.pausing or self._closed or self.steps is not None:
            return Batch(self, 0, 0)
        batch = self._free.pop() if self._free else self.new_batch()
        if self._source.table is not self._table:
            self.refresh()
        n = lib.vh_pop(self._q, batch.cdata, min(limit, self.budget))
        if n > 0 and batch.cdata.n_defer:
            n = self.map(batch)
        if n <= 0:
            self._free.append(batch)
            if n < 0:
                self.check(n)
        else:
            self.budget -= n
            batch.table = self._table
        return batch

    def new_batch(self, index: int = 0) -> Batch:
        """An empty batch for up to 64 chains; who has several may number them."""
        return Batch(self, BATCH, self._pieces, self._pieces if self.defers else 0, index)

    def __iter__(self) -> Iterator[Chain]:
        """The chains there are, popped in batches; each is to be pushed by whoever takes it."""
        while batch := self.pop():
            yield from batch

    def push_done(self, batch: Batch) -> None:
        """Return the completed chains of a batch; batches and chains call this.

        A closed queue has nobody to return them to: then they only give their memory back, with the last one.
        """
        if self._closed:
            self._keep_back(batch)
            return
        if batch.mapped is not None:
            # The grants of a batch are mapped in one call, and given back before the driver hears of it.
            if lib.vh_batch_left(batch.cdata):
                return
            self._give_back(batch)
        lib.vh_push(self._q, batch.cdata)
        if not batch.cdata.pending:
            self._take_back(batch)

    def serve_in_steps(self, batch: Batch, index: int, steps: Iterator[None]) -> None:
        """Serve the chain `index` of the batch popped last in steps, which :meth:`step` takes one by one.

        The chains behind it go back to the ring. So does the chain itself where others are before it in the
        batch: then nothing is served in steps yet, and the batch ends with them.

        :param steps: what the device's ``process`` returned for the chain.
        """
        lib.vh_put_back(self._q, batch.cdata, index or 1)
        made = Steps(batch, steps)
        if index:
            made.close()
        else:
            self.steps = made
            self._q.stepping = True

    def step(self) -> None:
        """Take the next step of the request that is served in steps; after the last one it is returned."""
        steps = self.steps
        if steps is None:
            return
        try:
            if not steps.take():
                return
        except BaseException:
            self._stepped()
            raise
        self._stepped()
        steps.batch[0].done()
        self.push_done(steps.batch)

    def put_back(self) -> None:
        """Give the request that is served in steps up: it is on the ring again, as if it had not been
        popped."""
        steps = self.steps
        if steps is None:
            return
        batch = steps.batch
        self._stepped()
        try:
            steps.close()
            batch.drop_views(0)
        finally:
            batch.chains[0].state = lib.VH_PUSHED  # for a device that still has it
            lib.vh_put_back(self._q, batch.cdata, 0)
            self._take_back(batch)

    def _stepped(self) -> None:
        self.steps = None
        self._q.stepping = False

    def _take_back(self, batch: Batch) -> None:
        # None of its chains is with the device.
        batch.release()
        if not batch.cdata.index:
            self._free.append(batch)

    def kicks_off(self) -> None:
        """Ask the driver for no kicks while the queue is served anyway."""
        if not self._closed:
            lib.vh_kicks_off(self._q)

    def kicks_on(self) -> bool:
        """Ask for kicks again; true if chains came meanwhile, for which no kick may follow."""
        return not self._closed and bool(lib.vh_kicks_on(self._q))

    def kicks_past(self) -> None:
        """Ask for kicks for what comes behind the chains that are there, which the device leaves there."""
        if not self._closed:
            lib.vh_kicks_past(self._q)

    @property
    def offered(self) -> int:
        """A number that changes when there are more chains than before, while none is popped."""
        return 0 if self._closed else int(lib.vh_offered(self._q))

    def available(self) -> bool:
        """Whether there is a chain to pop."""
        return not self._closed and bool(lib.vh_available(self._q))

    def check(self, n: int) -> None:
        """Say what a call into the core means that returned `n` chains, if that is less than none.

        :raises VirtqueueError: the driver broke the rules. A missing translation is no fault, see
            :attr:`miss`.
        """
        if n == -lib.VH_E_MISS:
            address, size = self._q.info
            self.miss = Miss(address, size, self._q.miss == 2)
        elif n < 0:
            raise VirtqueueError(self.error())

    def lacking(self) -> tuple[list[Miss], list[Miss]]:
        """Translations for want of which nothing is popped, after :attr:`miss` was set, which this takes.

        :returns: what the next chain lacks, never empty, and what those behind it do.
        """
        first, self.miss = self.miss, None
        table = self._source.table
        found = ffi.new("struct vh_lack[]", LACKS)
        n = lib.vh_lacking(self._q, table.cdata, found, LACKS)
        next_one = [Miss(lack.addr, lack.len, bool(lack.write)) for lack in found[0:n] if not lack.chain]
        behind = [Miss(lack.addr, lack.len, bool(lack.write)) for lack in found[0:n] if lack.chain]
        if first is not None and not next_one:
            next_one = [first]
        return next_one, behind

    @property
    def word(self) -> bytes:
        """Four bytes that only the device writes: flags and index of used, of a packed ring its event
        suppression."""
        return bytes(self._rings[2].view[:4])

    @property
    def away(self) -> bool:
        """Whether the ring's memory is given back, but the queue goes on when it comes again."""
        return self._waiting is not None

    def leave(self) -> None:
        """Give the ring's memory back for now, with the device still holding chains.

        Until :meth:`come_back` there is nothing to pop, and what is returned waits.
        """
        self._closed, self._waiting = True, []
        self._table = Table()
        lib.vh_queue_swap(self._q, self._table.cdata)
        self._before.clear()
        for ring in self._rings:
            ring.close()

    def come_back(self, rings: tuple[RingAccess, RingAccess, RingAccess]) -> None:
        """Go on where :meth:`leave` left, with the ring where it is now.

        :raises VirtqueueError: the guest did not grant what an answer needs.
        """
        q, returned = self._q, self._waiting or []
        self._rings = rings
        q.desc, q.avail, q.used = (ffi.cast("void *", part.address) for part in rings)
        self._closed, self._waiting = False, None
        self.refresh()
        for batch in returned:
            self.push_done(batch)

    def _keep_back(self, batch: Batch) -> None:
        # What is returned while there is no ring: only the memory can be given back.
        if self._waiting is not None and batch not in self._waiting:
            self._waiting.append(batch)
        if not lib.vh_batch_left(batch.cdata) and (self._waiting is None or batch.mapped is None):
            batch.release()

    def close(self) -> None:
        """Give the ring's memory back. Whoever still has the queue finds it empty from now on."""
        returned, self._waiting = self._waiting or (), None
        self._closed = True
        for batch in returned:
            self._keep_back(batch)
        for ring in self._rings:
            ring.close()
        self._free.clear()
        self._before.clear()
        self._table = Table()
        self._log = None

    def map(self, batch: Batch) -> int:
        """Make reachable what a popped batch needs of memory that is mapped for its use.

        :returns: the number of chains in it, which may be fewer now: the others are on the ring again.
        :raises VirtqueueError: the guest did not grant what the only chain in it needs.
        """
        try:
            n = self._map_all(batch)
        except GuestMemoryError as error:
            several = len(batch) > 1
            lib.vh_unpop(self._q, batch.cdata)
            if not several:
                raise VirtqueueError(f"queue {self.index}: {error}") from error
        else:
            if n < 0:
                lib.vh_unpop(self._q, batch.cdata)
            return n
        # One grant of many is bad, or they are too many for one call: one chain now, so up to the bad one.
        n = lib.vh_pop(self._q, batch.cdata, 1)
        return self.map(batch) if n > 0 and batch.cdata.n_defer else n

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

    def error(self) -> str:
        """What broke the ring, in words."""
        first, second = self._q.info
        return f"queue {self.index}: {_WORDS[self._q.error].format(first, second)}"
