# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a block device tells its driver of the disk: feature bits and configuration space."""

from dataclasses import dataclass

from vhost.devices.disk import Disk
from vhost.virtio.blk import SECTOR, BlkFeature, ConfigSpace

__all__ = ("BlkConfig",)


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

    #: What a request had better not exceed, since those behind it wait for it; longer ones are served too.
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
        """The configuration space, 96 bytes.

        :param writeback: whether writes may stay in a volatile cache until a flush.
        """
        disk, block = self.disk, self.disk.block_size
        space = ConfigSpace(
            capacity=disk.size // SECTOR,
            seg_max=self.seg_max,
            blk_size=block,
            physical_block_exp=(disk.physical_size // block).bit_length() - 1,
            min_io_size=min(disk.io_min // block, 0xFFFF),
            opt_io_size=disk.io_best // block,
            writeback=writeback,
            num_queues=self.num_queues,
        )
        if disk.can_discard:
            space = space._replace(
                max_discard_sectors=self.max_discard_sectors,
                max_discard_seg=self.max_discard_segments,
                discard_sector_alignment=disk.physical_size // SECTOR,
            )
        if not disk.read_only:
            space = space._replace(
                max_write_zeroes_sectors=self.max_write_zeroes_sectors,
                max_write_zeroes_seg=self.max_write_zeroes_segments,
                write_zeroes_may_unmap=disk.can_discard,
            )
        return space.pack()
