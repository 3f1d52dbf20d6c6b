# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A random number generator (virtio 1.3, 5.4): every request is filled from a source of bytes."""

import logging
import os
import time
from typing import Any

from vhost._core import ffi, lib
from vhost.devices.device import Device
from vhost.devices.entropy import Source
from vhost.virtqueue import Batch, Chain, Queue

__all__ = ("Rng",)

# Bytes taken from the source at a time, and seconds until a source that had none is asked again.
_STOCK = 65536
_DRY = 0.02

_log = logging.getLogger(__name__)


class Rng(Device):
    """A random number generator.

    A request gets at least one byte, possibly fewer than it has room for; the driver asks again.

    :param source: where the bytes come from. Those of the system, without a limit, are given by the C core.
    :param max_bytes: the most bytes to give per period, None for no limit.
    :param period_ms: length of a period in milliseconds; it begins with the first byte given in it.
    """

    name = "rng"
    device_id = 4

    def __init__(
        self, source: Source = os.getrandom, *, max_bytes: int | None = None, period_ms: int = 65536
    ) -> None:
        self._source = source
        self._stock = memoryview(b"")  # taken from the source, not given yet: what is popped can be served
        self._max_bytes, self._period = max_bytes, period_ms / 1000
        self._left, self._period_end = max_bytes or 0, 0.0
        self._warned = False

    def path(self, queue: Queue) -> Any:
        """The native data path, for the system's bytes without a limit."""
        if self._source is not os.getrandom or self._max_bytes is not None:
            return None
        self._core = ffi.new("struct vh_rng_path *")
        lib.vh_rng_init(self._core)
        return ffi.addressof(self._core.path)

    def process(self, chain: Chain) -> None:
        if chain.readable:
            self._warn(chain.readable)
        chain.write(self._source(min(chain.writable, _STOCK)))

    def handle(self, queue: Queue) -> float | None:
        while True:
            if self._max_bytes is not None and (now := time.monotonic()) >= self._period_end:
                self._left, self._period_end = self._max_bytes, now + self._period
            if not self._stock:
                if not queue.available():
                    return None  # what is taken from a source that others share is for a request
                self._stock = memoryview(self._source(_STOCK))
            room = len(self._stock) if self._max_bytes is None else min(len(self._stock), self._left)
            if not room:
                return max(self._period_end - now, 0.001) if self._stock else _DRY
            batch = queue.pop(min(room, 64))  # at most one request per byte: every one gets some
            if not batch:
                return None
            self._left -= self._fill(batch, room)
            batch.push()

    def _fill(self, batch: Batch, room: int) -> int:
        if batch.readable:
            self._warn(batch.readable)
        if batch.writable <= room:
            given = batch.scatter(self._stock[: batch.writable])
        else:
            given, left = 0, len(batch)
            for chain in batch:
                share = (room - given) // left
                given += chain.write(self._stock[given : given + min(share, chain.writable)])
                left -= 1
        self._stock = self._stock[given:]
        return given

    def _warn(self, n: int) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("the driver sends %d bytes to a device that only gives: ignored", n)
