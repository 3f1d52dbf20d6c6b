# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A block device (virtio 1.3, 5.2) on a raw image, a block device of the host, memory, or nothing.

The C core serves reads, writes, flushes and the serial number, a batch at a time; this module serves the
requests that are rare: discard, write zeroes, and everything malformed.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from vhost._core import ffi, lib
from vhost.devices.blk_clear import Clearing, Range
from vhost.devices.blk_config import BlkConfig
from vhost.devices.blk_path import BlkPath
from vhost.devices.device import Device
from vhost.devices.disk import Disk
from vhost.devices.image import Image
from vhost.errors import DeviceError
from vhost.mem import Memory
from vhost.virtio.blk import (
    BIG_HEADER,
    BIG_SEGMENT,
    HEADER,
    SECTOR,
    SEGMENT,
    SERIAL_SIZE,
    UNMAP,
    WRITEBACK,
    BlkFeature,
    BlkRequest,
    BlkStatus,
    ConfigSpace,
)
from vhost.virtqueue import Chain, Queue

__all__ = ("Blk", "BlkStatistics")

_SEG_MAX = 126  # with header and status, the descriptors of a ring of 128

_log = logging.getLogger(__name__)


class BlkStatistics(NamedTuple):
    """What became of the reads and writes of a queue."""

    #: Reads and writes of the image.
    transfers: int
    #: System calls, or operations of io_uring, for them and for flushes: adjacent requests are merged.
    calls: int


class Blk(Device):
    """A block device.

    :param disk: what holds the data, closed with the device; the path of a raw image or of a block device
        stands for an :class:`~vhost.devices.image.Image`.
    :param read_only: refuse to write, and open the image for reading only; only together with a path.
    :param serial: up to 20 ASCII characters, for ``/dev/disk/by-id`` in the guest.
    :param num_queues: request queues, 1 to 256; with :func:`vhost.serve` each has a thread.
    :raises OSError: the image cannot be opened.
    :raises DeviceError: the path is no disk, the image is in use, or another parameter is out of range.
    """

    name = "blk"
    device_id = 2
    feature_type = BlkFeature
    offers_config = True
    max_chain = _SEG_MAX + 2

    def __init__(
        self,
        disk: Disk | str | os.PathLike[str],
        *,
        read_only: bool = False,
        serial: str = "",
        num_queues: int = 1,
    ) -> None:
        if not serial.isascii() or len(serial) > SERIAL_SIZE:
            raise DeviceError(f"serial {serial!r}: {SERIAL_SIZE} ASCII characters are the most")
        if not 1 <= num_queues <= 256:
            raise DeviceError(f"{num_queues} queues: 1 to 256 are possible")
        if isinstance(disk, Disk) and disk.read_only < read_only:
            raise DeviceError("read_only is for a path; make a read-only disk")
        self.num_queues = num_queues
        self._serial = serial.encode()
        self._disk = disk if isinstance(disk, Disk) else Image(disk, read_only=read_only)
        self._config = BlkConfig(self._disk, _SEG_MAX, num_queues)
        self._clearing = Clearing(self._disk)
        self.features = int(self._config.features())
        # Buffers that are mapped for their use only are never left to io_uring.
        self.in_order = self._disk.in_order or Memory.uses_xen
        self._core = ffi.new(
            "struct vh_blk *",
            {
                "capacity": self._disk.size // SECTOR,
                "memory": self._disk.memory,
                "fd": self._disk.fd,
                "guard": self._disk.guard,
                "block": self._disk.block_size,
                "align": self._disk.memory_align,
                "serial": self._serial.ljust(SERIAL_SIZE, b"\0"),
            },
        )
        self._paths: dict[int, BlkPath] = {}
        self._writeback = True
        self.reset()

    def reset(self) -> None:
        # The cache mode outlives this (5.2.5 allows either one after a reset): front-ends keep a copy of it,
        # and show that to the next driver.
        self._negotiated: BlkFeature | None = None
        self._warned = False
        self._choose(self._writeback)

    def disconnected(self) -> None:
        self._writeback = True
        self.reset()

    def negotiated(self, features: int) -> None:
        self._negotiated = BlkFeature(features & self.features)
        self._choose(self._writeback)

    def _choose(self, writeback: bool) -> None:
        # A driver that cannot flush gets every write on stable storage, whatever it sets.
        self._writeback = writeback
        can_flush = self._negotiated is not None and BlkFeature.FLUSH in self._negotiated
        flags = 0 if writeback and can_flush else lib.VH_BLK_WRITE_THROUGH
        self._core.flags = flags | (lib.VH_BLK_READ_ONLY if self._disk.read_only else 0)

    @property
    def _shown(self) -> bool:
        # Before there is a driver, what one that can flush would see.
        return self._writeback and (self._negotiated is None or BlkFeature.FLUSH in self._negotiated)

    def config(self) -> bytes:
        return self._config.pack(writeback=self._shown)

    def set_config(self, offset: int, data: bytes, *, migration: bool = False) -> None:
        """Take over the cache mode if it is in `data`; the other fields are the disk's, whatever comes."""
        if offset < 0 or offset + len(data) > ConfigSpace.size():
            raise DeviceError(
                f"blk: {len(data)} bytes at {offset} reach beyond {ConfigSpace.size()} bytes of config"
            )
        changes = ConfigSpace.unpack(self.config()).changes(offset, data)
        if fields := ", ".join(name for name in changes if name != "writeback"):
            if not migration:
                raise DeviceError(f"blk: the driver writes {fields}, which it may only read")
            _log.warning("blk: where the guest comes from the disk had another %s; this disk's stays", fields)
        if not offset <= WRITEBACK < offset + len(data):
            return
        value = data[WRITEBACK - offset]
        # Where the guest comes from, the driver has negotiated what it wrote.
        if not (migration or (self._negotiated and BlkFeature.CONFIG_WCE in self._negotiated)):
            if value == self._shown:
                return
            raise DeviceError("blk: the driver sets writeback, but did not negotiate CONFIG_WCE")
        if value > 1:
            raise DeviceError(f"blk: the driver sets writeback to {value}, which is neither 0 nor 1")
        was_cached = self._shown
        self._choose(bool(value))
        if was_cached and not value:
            # Nobody will flush what is in the cache now; what is written from here on goes through.
            try:
                self._disk.flush()
            except OSError as error:
                self._choose(True)
                raise DeviceError(f"blk: cannot flush the cache: {error.strerror}") from error

    def stop(self, index: int) -> None:
        if index in self._paths:
            self._paths.pop(index).close()

    def close(self) -> None:
        for index in list(self._paths):
            self.stop(index)
        self._disk.close()

    def path(self, queue: Queue) -> Any:
        """The native data path of `queue`; it leaves the rare requests to :meth:`process`."""
        self.stop(queue.index)
        self._paths[queue.index] = made = self._disk.path(self._core, queue.size, later=not queue.defers)
        return made.cdata

    def statistics(self, index: int) -> BlkStatistics:
        """What the data path of queue `index` has done since its ring started; zeroes while it rests."""
        path = self._paths.get(index)
        return BlkStatistics(path.transfers, path.calls) if path else BlkStatistics(0, 0)

    def process(self, chain: Chain) -> Iterator[None] | None:
        if not chain.writable:
            self._failed("a request without room for its status")
            return None
        answer = self._serve(chain)
        if isinstance(answer, list):
            return self._clear(chain, answer)
        chain.write_at(chain.writable - 1, bytes([answer]))
        return None

    def _serve(self, chain: Chain) -> BlkStatus | list[Range]:
        # The status, or what is to be cleared before there is one.
        header = chain.read(HEADER.size)
        if len(header) < HEADER.size:
            return self._failed(f"a request with {len(header)} bytes of header instead of {HEADER.size}")
        kind = (BIG_HEADER if chain.big_endian else HEADER).unpack(header)[0]
        if kind == BlkRequest.DISCARD and self._disk.can_discard:
            return self._ranges(chain, self._config.max_discard_segments, zero=False)
        if kind == BlkRequest.WRITE_ZEROES and not self._disk.read_only:
            return self._ranges(chain, self._config.max_write_zeroes_segments, zero=True)
        if kind in (BlkRequest.IN, BlkRequest.OUT):
            return self._failed(f"a transfer with {chain.readable} bytes out and {chain.writable} in")
        return BlkStatus.UNSUPP

    def _ranges(self, chain: Chain, max_segments: int, *, zero: bool) -> BlkStatus | list[Range]:
        size = chain.readable - HEADER.size
        if size % SEGMENT.size or not 0 < size <= max_segments * SEGMENT.size:
            return self._failed(f"{size} bytes of segments: {SEGMENT.size} each, {max_segments} at most")
        layout = BIG_SEGMENT if chain.big_endian else SEGMENT
        ranges = []
        # All are checked before the first takes effect. Longer ones than we ask for are common.
        for sector, sectors, flags in layout.iter_unpack(chain.read(size)):
            if flags & ~(UNMAP if zero else 0):
                return BlkStatus.UNSUPP
            if sector + sectors > self._core.capacity:
                return self._failed(f"{sectors} sectors at {sector} of a disk of {self._core.capacity}")
            ranges.append(Range(sector * SECTOR, sectors * SECTOR, zero, bool(flags & UNMAP)))
        return ranges

    def _clear(self, chain: Chain, ranges: list[Range]) -> Iterator[None]:
        try:
            yield from self._clearing.run(ranges)
            if self._core.flags & lib.VH_BLK_WRITE_THROUGH:
                self._disk.flush()
            status = BlkStatus.OK
        except OSError as error:
            status = self._failed(str(error))
        chain.write_at(chain.writable - 1, bytes([status]))

    # The driver decides how often this happens, so only the first time since the last reset is news.
    def _failed(self, why: str) -> BlkStatus:
        _log.log(logging.DEBUG if self._warned else logging.WARNING, "blk: request failed: %s", why)
        self._warned = True
        return BlkStatus.IOERR
