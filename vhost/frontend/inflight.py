# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The region in which a backend records what it works on, kept for the one that comes after it.

vhost-user.rst, «Inflight I/O tracking»: the backend lays it out, the frontend only keeps the descriptor.
"""

import os
from dataclasses import replace
from typing import Final

from vhost.protocol import GetInflightFd, Inflight, SetInflightFd

from .exchange import Exchange
from .link import Link

__all__ = ("InflightRegion", "fetch")

_HEAD: Final = 32
_ENTRY: Final = 32


class InflightRegion:
    """A descriptor of memory, and how it was described; closed by :meth:`close`.

    :param described: for how many queues, of how many entries: neither is 0.
    """

    def __init__(self, described: Inflight, fd: int) -> None:
        self._described = described
        self._fd = fd

    def hand_over(self, link: Link) -> Exchange[None]:
        """Tell a backend of it; has to come before the rings are started."""
        it = self._described
        message = SetInflightFd(it.mmap_size, it.mmap_offset, it.num_queues, it.queue_size)
        yield from link.exchange(message, (self._fd,))

    def forget(self, queue: int) -> None:
        """Clear the part of a queue that starts from scratch, so that its backend lays it out anew."""
        it = self._described
        stride = it.mmap_size // it.num_queues
        # No layout has more than a head of 32 bytes and 32 for each entry, but the stride is the backend's.
        size = min(stride, _HEAD + _ENTRY * it.queue_size)
        os.pwrite(self._fd, bytes(size), it.mmap_offset + queue * stride)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


def fetch(link: Link, queues: int, queue_size: int) -> Exchange[InflightRegion]:
    """Ask a backend for a region for so many queues of so many entries.

    Of the answer only size and offset are sure to be there (vhost-user.rst, «Inflight description»): some
    backends leave the numbers of queues and entries 0, which are then as asked for.
    """
    value, fd = yield from link.fetch(GetInflightFd(0, 0, queues, queue_size))
    if isinstance(value, Inflight):
        value = replace(
            value, num_queues=value.num_queues or queues, queue_size=value.queue_size or queue_size
        )
    if not isinstance(value, Inflight) or value.num_queues > value.mmap_size:
        os.close(fd)
        raise link.out_of_step(f"GET_INFLIGHT_FD was answered with {value}")
    return InflightRegion(value, fd)
