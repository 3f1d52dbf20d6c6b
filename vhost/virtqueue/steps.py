# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A request that takes long: its device serves it in steps, and others have their turn in between.

It is the newest chain that was taken from its ring, so that it can go back there whenever the ring stops.
"""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, final

from vhost._core import ffi

if TYPE_CHECKING:
    from vhost.virtqueue.batch import Batch

__all__ = ("Steps",)


@final
class Steps:
    """Held by the queue until the request is complete or back on the ring.

    :param batch: of which it is the only chain.
    :param iterator: what the device's ``process`` returned; each step is one ``next``.
    """

    def __init__(self, batch: "Batch", iterator: Iterator[None]) -> None:
        self.batch = batch
        self._iterator = iterator

    def take(self) -> bool:
        """Take the next step; true: it was the last one.

        Whatever the device raises comes out of this.
        """
        for _ in self._iterator:
            return False
        return True

    def uses(self, address: int, size: int) -> bool:
        """Whether a buffer of the request was found by a translation of one of these I/O addresses."""
        table, batch = self.batch.table, self.batch
        if table is None:
            return False
        chain, iov = batch.chains[0], batch.cdata.iov
        pieces = range(chain.iov, chain.iov + chain.n_read + chain.n_write)
        places = [(int(ffi.cast("uintptr_t", iov[i].base)), int(iov[i].len)) for i in pieces]
        return any(
            at < region.address + region.spec.size and region.address < at + n
            for region in table.overlapping(address, address + size)
            for at, n in places
        )

    def close(self) -> None:
        """Tell the device that no further step will be taken."""
        if isinstance(self._iterator, Generator):
            self._iterator.close()
