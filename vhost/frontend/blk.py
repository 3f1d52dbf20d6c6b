# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Drives a block device (virtio 1.3, 5.2), one request at a time or many in flight."""

import errno
from collections.abc import Iterator
from typing import Final

from vhost.virtio.blk import (
    BIG_HEADER,
    BIG_SEGMENT,
    HEADER,
    SECTOR,
    SEGMENT,
    SERIAL_SIZE,
    UNMAP,
    BlkFeature,
    BlkRequest,
    BlkStatus,
    ConfigSpace,
)

from .frontend import Frontend
from .ring import Completion, Data

__all__ = ("Blk",)

# The most bytes of one request of read() and write(); longer ones are split.
_PIECE: Final = 1 << 20


# Status byte: what it means, and the errno for it.
_STATUS: Final = {
    BlkStatus.IOERR: ("IOERR", errno.EIO),
    BlkStatus.UNSUPP: ("UNSUPP", errno.ENOTSUP),
    0xFF: ("none at all", errno.EIO),
}


# How much of the configuration space there is by features: its fields end with those of the last one. QEMU
# asks for these sizes too.
_CONFIG_BASIC: Final = 36
_CONFIG_DISCARD: Final = 48
_CONFIG_WRITE_ZEROES: Final = 60


class Blk:
    """A block device behind `frontend`, which stays the caller's to close.

    ``read`` and ``write`` split what is too long for one request and keep the pieces in flight together.
    ``submit_...`` return tokens; ``wait`` and ``drain`` give what came back for them.

    :param queue: the queue to use.
    :raises LocalProtocolError: the backend does not offer its configuration space.
    """

    def __init__(self, frontend: Frontend, *, queue: int = 0) -> None:
        self._queue = frontend.queue(queue)
        self._header, self._layout = (BIG_HEADER, BIG_SEGMENT) if frontend.big_endian else (HEADER, SEGMENT)
        self.features = BlkFeature(frontend.features & sum(BlkFeature))
        size = _CONFIG_BASIC
        if self.features & BlkFeature.DISCARD:
            size = _CONFIG_DISCARD
        if self.features & BlkFeature.WRITE_ZEROES:
            size = _CONFIG_WRITE_ZEROES
        self._config = ConfigSpace.unpack(frontend.config(0, size))
        #: Bytes of the device.
        self.capacity = self._config.capacity * SECTOR
        self.block_size = self._config.blk_size if self.features & BlkFeature.BLK_SIZE else SECTOR
        self.read_only = bool(self.features & BlkFeature.RO)
        segment = self._config.size_max if self.features & BlkFeature.SIZE_MAX else 0
        segments = self._config.seg_max if self.features & BlkFeature.SEG_MAX else 0
        # Two descriptors of a chain are header and status.
        self._segments = max(1, min(segments or 1, self._queue.size - 2))
        self._segment = max(SECTOR, (segment or _PIECE) // SECTOR * SECTOR)
        self._piece = min(_PIECE, self._segments * self._segment)
        self._what: dict[int, str] = {}  # by token, for messages

    # ---- one at a time -------------------------------------------------------------------------------------

    def read(self, offset: int, n: int) -> bytes:
        """`n` bytes from `offset`, both multiples of 512.

        :raises OSError: the device could not.
        """
        pieces = range(offset, offset + n, self._piece)
        return b"".join(self._all(self.submit_read(at, min(self._piece, offset + n - at)) for at in pieces))

    def write(self, offset: int, data: Data) -> None:
        """Write `data` at `offset`, both multiples of 512 bytes.

        :raises OSError: the device could not.
        """
        view = memoryview(data).cast("B")
        pieces = range(0, len(view), self._piece)
        self._all(self.submit_write(offset + at, view[at : at + self._piece]) for at in pieces)

    def flush(self) -> None:
        """Wait until all that was written is on stable storage.

        :raises OSError: the device could not.
        """
        self.wait(self.submit_flush())

    def discard(self, offset: int, n: int) -> None:
        """Tell the device that nobody needs these `n` bytes any more.

        :raises OSError: the device could not, or does not offer DISCARD.
        """
        self._ranges(BlkRequest.DISCARD, offset, n, self._config.max_discard_sectors, 0)

    def write_zeroes(self, offset: int, n: int, *, unmap: bool = False) -> None:
        """Write `n` zeroes at `offset`.

        :param unmap: the device may free the space.
        :raises OSError: the device could not, or does not offer WRITE_ZEROES.
        """
        flags = UNMAP if unmap else 0
        self._ranges(BlkRequest.WRITE_ZEROES, offset, n, self._config.max_write_zeroes_sectors, flags)

    def serial(self) -> str:
        """The device's name, at most 20 characters.

        :raises OSError: it has none.
        """
        token = self._submit(BlkRequest.GET_ID, 0, [], [SERIAL_SIZE], "serial")
        return self.wait(token).split(b"\0", 1)[0].decode("ascii", "backslashreplace")

    # ---- many in flight ------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests whose result nobody has taken yet with ``wait`` or ``drain``."""
        return len(self._what)

    def submit_read(self, offset: int, n: int) -> int:
        """Start to read; waits for room when the ring is full. Returns a token."""
        sizes = [min(self._segment, n - at) for at in range(0, n, self._segment)]
        return self._submit(BlkRequest.IN, _sector(offset, n), [], sizes, f"read of {n} bytes at {offset}")

    def submit_write(self, offset: int, data: Data) -> int:
        """Start to write a copy of `data`; waits for room when the ring is full. Returns a token."""
        view = memoryview(data).cast("B")
        parts = [view[at : at + self._segment] for at in range(0, len(view), self._segment)]
        what = f"write of {len(view)} bytes at {offset}"
        return self._submit(BlkRequest.OUT, _sector(offset, len(view)), parts, [], what)

    def submit_flush(self) -> int:
        """Start to flush; waits for room when the ring is full. Returns a token."""
        return self._submit(BlkRequest.FLUSH, 0, [], [], "flush")

    def wait(self, token: int) -> bytes:
        """Wait for a request: the bytes read, ``b""`` for others.

        :raises OSError: it failed.
        """
        return self._result(self._queue.wait(token))

    def drain(self) -> Iterator[tuple[int, bytes]]:
        """Wait for all requests in flight: their tokens and the bytes read, as they come back.

        :raises OSError: one failed; the others can still be had from another ``drain``.
        """
        while self._what:
            done = self._queue.wait()
            yield done.token, self._result(done)

    # ---- below ---------------------------------------------------------------------------------------------

    def _submit(
        self, kind: BlkRequest, sector: int, readable: list[memoryview], writable: list[int], what: str
    ) -> int:
        if max(len(readable), len(writable)) > self._segments:
            raise ValueError(f"{what}: one request of this device has at most {self._piece} bytes")
        chain: list[Data] = [self._header.pack(kind, 0, sector), *readable]
        while True:
            try:
                token = self._queue.submit(chain, [*writable, 1])
            except (BlockingIOError, MemoryError):
                if not self._queue.make_room():
                    raise
            else:
                self._what[token] = what
                return token

    def _result(self, done: Completion) -> bytes:
        what = self._what.pop(done.token, "request")
        status = done.buffer[-1]
        if status:
            word, code = _STATUS.get(status, ("unknown", errno.EIO))
            raise OSError(code, f"{what}: the device answered with status {status} ({word})")
        return done.buffer[:-1]

    def _all(self, submits: Iterator[int]) -> list[bytes]:
        tokens: list[int] = []
        try:
            tokens.extend(submits)
            return [self.wait(token) for token in tokens]
        except BaseException:
            for token in tokens:
                self._what.pop(token, None)
                self._queue.drop(token)
            raise

    def _ranges(self, kind: BlkRequest, offset: int, n: int, limit: int, flags: int) -> None:
        first, count = _sector(offset, n), n // SECTOR
        step = min(limit or count, 0xFFFF_FFFF)

        def submits() -> Iterator[int]:
            for sector in range(first, first + count, step):
                sectors = min(step, first + count - sector)
                data = memoryview(self._layout.pack(sector, sectors, flags))
                what = f"{kind.name} of {sectors * SECTOR} bytes at {sector * SECTOR}"
                yield self._submit(kind, 0, [data], [], what)

        self._all(submits())


def _sector(offset: int, n: int) -> int:
    if offset < 0 or n < 0 or offset % SECTOR or n % SECTOR:
        raise ValueError(f"{n} bytes at {offset}: position and length have to be multiples of {SECTOR}")
    return offset // SECTOR
