# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The configuration space and the feature bits of a block device (virtio 1.3, 5.2.3 and 5.2.4)."""

import enum
import struct
from dataclasses import dataclass

from vhost.devices.disk import SECTOR, Disk

__all__ = ("BlkConfig", "BlkFeature", "CONFIG_SIZE", "WRITEBACK")


class BlkFeature(enum.IntFlag):
    """Feature bits 0 to 23 of device type 2, those in use."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


# capacity, size_max, seg_max, cylinders, heads, sectors, blk_size, physical_block_exp, alignment_offset,
# min_io_size, opt_io_size, writeback, (pad), num_queues, three of discard, two of write zeroes and may_unmap,
# (pad), three of secure erase, five of zoned and model, (pad)
_LAYOUT = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3xIIIIIIIIB3x")
#: Bytes of the whole space.
CONFIG_SIZE = _LAYOUT.size
#: Offset of the only byte that a driver may write.
WRITEBACK = 32


@dataclass(frozen=True, slots=True)
class BlkConfig:
    """What the driver may know of a disk.

    :param disk: size, block sizes, and whether it can discard.
    :param seg_max: the most data buffers of one request.
    :param num_queues: request queues.
    """

    disk: Disk
    seg_max: int
    num_queues: int

    #: Limits of a single request; they bound how long one request can keep a ring busy.
    max_discard_sectors = (1 << 30) // SECTOR
    max_discard_segments = 32
    max_write_zeroes_sectors = (32 << 20) // SECTOR
    max_write_zeroes_segments = 1

    def features(self) -> BlkFeature:
        """The feature bits that say which fields count."""
        bits = BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE | BlkFeature.TOPOLOGY
        bits |= BlkFeature.FLUSH | BlkFeature.CONFIG_WCE
        if self.num_queues > 1:
            bits |= BlkFeature.MQ
        if self.disk.read_only:
            bits |= BlkFeature.RO
        else:
            bits |= BlkFeature.WRITE_ZEROES
        if self.disk.can_discard:
            bits |= BlkFeature.DISCARD
        return bits

    def pack(self, *, writeback: bool) -> bytes:
        """All 96 bytes, in the little-endian order of virtio 1.

        :param writeback: whether writes may stay in a volatile cache until a flush.
        """
        disk = self.disk
        block, physical = disk.block_size, disk.physical_size
        discard = write_zeroes = (0, 0, 0)
        if disk.can_discard:
            discard = (self.max_discard_sectors, self.max_discard_segments, physical // SECTOR)
        if not disk.read_only:
            write_zeroes = (
                self.max_write_zeroes_sectors,
                self.max_write_zeroes_segments,
                int(disk.can_discard),
            )
        return _LAYOUT.pack(
            disk.size // SECTOR,
            0,  # size_max: no limit
            self.seg_max,
            *(0, 0, 0),  # geometry: none
            block,
            (physical // block).bit_length() - 1,
            0,  # alignment_offset: the first block is aligned
            min(disk.io_min // block, 0xFFFF),
            disk.io_best // block,
            writeback,
            self.num_queues,
            *discard,
            *write_zeroes,
            *(0, 0, 0),  # secure erase: none
            *(0, 0, 0, 0, 0, 0),  # not zoned
        )
