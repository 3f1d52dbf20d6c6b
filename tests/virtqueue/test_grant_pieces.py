# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""How the C core sorts pieces in granted pages, and what it describes for the hypervisor.

Needs no Xen: the test is the hypervisor, which copies, and the kernel, which maps.
"""

import os
import random
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vhost._core import ffi, lib

PAGE, BIT = 4096, 1 << 63
REFS = 64
SOURCE, DEST = 1, 2
FILL = random.Random(1).randbytes(REFS * PAGE)


@dataclass(frozen=True)
class Piece:
    """Bytes in consecutive references of a domain, and how many of them the device will have written."""

    start: int
    n: int
    write: bool
    domid: int
    written: int


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    """Pieces that may share pages but no bytes that are written."""
    found, at = [], 0
    for _ in range(draw(st.integers(1, 12))):
        at += draw(st.sampled_from([0, 1, 15, 100, 4000, 4096]))
        n = draw(st.sampled_from([1, 2, 16, 512, 1000, 1024, 1025, 4095, 4096, 4097, 9000]))
        if at + n > REFS * PAGE:
            break
        found.append(Piece(at, n, draw(st.booleans()), draw(st.integers(0, 2)), draw(st.integers(0, n))))
        at += n
    return found or [Piece(0, 1, True, 0, 1)]


class Guests:
    """Three domains' granted pages, which are files; what is asked of Xen is checked and done."""

    def __init__(self) -> None:
        self._maps: list[tuple[Any, int]] = []
        self._files = [os.memfd_create("granted") for _ in range(3)]
        for domid, fd in enumerate(self._files):
            os.write(fd, FILL[domid:] + FILL[:domid])

    def close(self) -> None:
        for address, n in self._maps:
            lib.munmap(address, n)
        for fd in self._files:
            os.close(fd)

    @property
    def memory(self) -> list[bytes]:
        return [os.pread(fd, REFS * PAGE, 0) for fd in self._files]

    def copy(self, segments: Any, count: int) -> None:
        for segment in segments[0:count]:
            assert segment.flags in (SOURCE, DEST)
            out = segment.flags == DEST
            guest = (segment.dest if out else segment.source).grant
            ours = ffi.buffer((segment.source if out else segment.dest).virt, segment.len)
            assert 0 < segment.len <= PAGE - guest.offset, "a copy is within one page"
            at = guest.ref * PAGE + guest.offset
            if out:
                os.pwrite(self._files[guest.domid], ours, at)
            else:
                os.preadv(self._files[guest.domid], [ours], at)

    def map(self, domids: Any, refs: Any, write: int) -> Any:
        n, flags = len(refs) * PAGE, lib.MAP_PRIVATE | lib.MAP_ANONYMOUS
        start = lib.mmap(ffi.NULL, n, lib.PROT_NONE, flags, -1, 0)
        self._maps.append((start, n))
        protection = lib.PROT_READ | (lib.PROT_WRITE if write else 0)
        for index, (domid, ref) in enumerate(zip(domids, refs, strict=True)):
            fd, page = self._files[domid], ffi.cast("char *", start) + index * PAGE
            lib.mmap(page, PAGE, protection, lib.MAP_SHARED | lib.MAP_FIXED, fd, ref * PAGE)
        return start


def batch_of(wanted: list[Piece]) -> tuple[Any, Any, Any, Any]:
    """A batch with a chain for each piece; its chain has 10 bytes before it."""
    n = len(wanted)
    chains = ffi.new("struct vh_chain[]", n)
    iov = ffi.new("struct vh_iov[]", n)
    defer = ffi.new("struct vh_defer[]", n)
    for i, piece in enumerate(wanted):
        defer[i].gpa, defer[i].len, defer[i].at = BIT | piece.start, piece.n, 10
        defer[i].write, defer[i].domid = piece.write, piece.domid
        defer[i].chain = defer[i].iov = i
        chains[i].written = 10 + piece.written if piece.write else 0
    parts = {"n": n, "n_defer": n, "chain": chains, "defer": defer, "iov": iov}
    return ffi.new("struct vh_batch *", parts), chains, iov, defer


@given(
    wanted=pieces(),
    each=st.sampled_from([0, 16, 1024, 4096, 1 << 20]),
    most=st.sampled_from([0, 100, 1 << 20]),
)
def test_pieces_are_where_the_guest_has_them(wanted: list[Piece], each: int, most: int) -> None:
    guests = Guests()
    try:
        check(guests, wanted, each, most)
    finally:
        guests.close()


def check(guests: Guests, wanted: list[Piece], each: int, most: int) -> None:
    n, expected = len(wanted), [bytearray(memory) for memory in guests.memory]
    batch, _chains, iov, defer = batch_of(wanted)
    plan = ffi.new("struct vh_grants *", {"each": each, "all": most})
    assert lib.vh_grants_plan(defer, n, plan) == 0
    mapped = [[d for d in defer if d.how == lib.VH_MAP and d.write == write] for write in (0, 1)]
    assert all(d.how == lib.VH_COPY for d in defer if d.len <= each)
    if all(mapped):
        assert min(sum(d.len for d in some) for some in mapped) > most
    else:
        assert any(mapped) or all(d.len <= each for d in defer), "one direction stays mapped"
    assert plan.mixed == (len({piece.domid for piece in wanted}) > 1)

    for write in (0, 1):
        refs, domids = [ffi.new("uint32_t[]", plan.pages[write]) for _ in range(2)]
        lib.vh_grants_refs(defer, n, write, refs, domids)
        if plan.pages[write]:
            lib.vh_grants_mapped(defer, n, write, guests.map(domids, refs, write))
    space = ffi.new("uint8_t[]", plan.bounce + PAGE)
    start = int(ffi.cast("uintptr_t", space))
    segments = ffi.new("struct vh_copy[]", plan.segments)
    lib.vh_grants_fetch(defer, n, ffi.cast("void *", start + -start % PAGE), segments)
    guests.copy(segments, plan.segments)
    lib.vh_batch_place(batch)

    for i, piece in enumerate(wanted):
        view = ffi.buffer(iov[i].base, piece.n)
        if piece.write:
            data = bytes((i * 31 + k) % 256 for k in range(piece.written))
            view[: len(data)] = data
            expected[piece.domid][piece.start : piece.start + len(data)] = data
        else:
            assert view[:] == expected[piece.domid][piece.start : piece.start + piece.n]
    copies = lib.vh_grants_written(batch)
    segments = ffi.new("struct vh_copy[]", copies)
    lib.vh_grants_store(defer, n, segments)
    guests.copy(segments, copies)
    assert guests.memory == expected


def test_references_beyond_32_bits_are_no_references() -> None:
    plan = ffi.new("struct vh_grants *", {"each": 4096})
    last = BIT | 0xFFFF_FFFF << 12
    for gpa, n, verdict in ((last, 4096, 0), (last, 4097, -2), (last + 1, 4096, -2), ((1 << 64) - 1, 2, -2)):
        defer = ffi.new("struct vh_defer[]", [{"gpa": BIT, "len": 1}, {"gpa": gpa, "len": n}])
        assert lib.vh_grants_plan(defer, 2, plan) == verdict, hex(gpa)


def test_chains_whose_answers_did_not_arrive_are_not_returned() -> None:
    batch, chains, _, defer = batch_of([Piece(i << 16, 5000, True, 0, 5000) for i in range(3)])
    for chain, piece in zip(chains, defer, strict=True):
        chain.state, piece.how = lib.VH_DONE, lib.VH_COPY
    assert lib.vh_grants_written(batch) == 6
    segments = ffi.new("struct vh_copy[]", 6)
    segments[3].status = -1  # the second page of the second
    lib.vh_grants_stored(defer, 3, segments)
    assert lib.vh_grants_lose(batch) == 1
    assert [chain.state for chain in chains] == [lib.VH_DONE, lib.VH_OPEN, lib.VH_DONE]
    lib.vh_grants_stored(defer, 3, ffi.NULL)
    assert lib.vh_grants_lose(batch) == 2
    assert lib.vh_batch_left(batch) == 0
