# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A batch of requests in granted pages, as the C core hands it to guest memory."""

import ctypes

from vhost._core import ffi, lib
from vhost.mem import Deferred, GuestMemory

BIT = 1 << 63


class Batch:
    """A batch whose pieces lie in grants, each in a chain of its own, as the C core leaves it."""

    def __init__(self, *wants: tuple[int, int, bool], domids: tuple[int, ...] = (5,)) -> None:
        n = len(wants)
        self.chain = ffi.new("struct vh_chain[]", n)
        self.defer = ffi.new("struct vh_defer[]", n)
        self.iov = ffi.new("struct vh_iov[]", n)
        for i, (gpa, length, write) in enumerate(wants):
            self.defer[i] = {
                "gpa": BIT | gpa,
                "len": length,
                "write": write,
                "chain": i,
                "iov": i,
                "domid": domids[i % len(domids)],
            }
        self.cdata = ffi.new(
            "struct vh_batch *",
            {"n": n, "n_defer": n, "chain": self.chain, "defer": self.defer, "iov": self.iov},
        )
        self.n = n

    def reach(self, memory: GuestMemory) -> Deferred:
        deferred = memory.map_deferred(self.defer, self.n)
        lib.vh_batch_place(self.cdata)
        return deferred

    def at(self, index: int) -> int:
        """Host address of a piece."""
        return int(ffi.cast("uintptr_t", self.iov[index].base))

    def read(self, index: int) -> bytes:
        return ctypes.string_at(self.at(index), self.defer[index].len)

    def write(self, index: int, data: bytes) -> None:
        """As a device does: the bytes, and how many there are."""
        ctypes.memmove(self.at(index), data, len(data))
        self.chain[index].written = len(data)

    def done(self, deferred: Deferred) -> None:
        """Store and unmap, as a queue does when all chains are complete."""
        with deferred:
            if copies := lib.vh_grants_written(self.cdata):
                deferred.store(copies)
