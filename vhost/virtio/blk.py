# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The wire format of block devices (virtio 1.3, 5.2): features, requests, configuration space."""

import enum
import struct
from typing import Final, NamedTuple, Self

__all__ = (
    "SECTOR",
    "HEADER",
    "BIG_HEADER",
    "SEGMENT",
    "BIG_SEGMENT",
    "UNMAP",
    "SERIAL_SIZE",
    "WRITEBACK",
    "BlkFeature",
    "BlkRequest",
    "BlkStatus",
    "ConfigSpace",
)

#: Bytes of a sector, the unit of positions whatever the block size.
SECTOR: Final = 512
#: In front of every request: type, reserved, sector.
HEADER: Final = struct.Struct("<IIQ")
#: The same from a legacy driver on a big-endian machine (5.2.6, "Legacy Interface: Device Operation").
BIG_HEADER: Final = struct.Struct(">IIQ")
#: A range to discard or to zero: sector, sectors, flags.
SEGMENT: Final = struct.Struct("<QII")
#: The same from a legacy driver on a big-endian machine.
BIG_SEGMENT: Final = struct.Struct(">QII")
#: The flag of a segment to zero whose space may be given back.
UNMAP: Final = 1
#: Bytes of a serial number.
SERIAL_SIZE: Final = 20
#: Offset of the one byte of the configuration space that a driver may write.
WRITEBACK: Final = 32


class BlkFeature(enum.IntFlag):
    """Feature bits of device type 2 (5.2.3)."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    GEOMETRY = 1 << 4
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


class BlkRequest(enum.IntEnum):
    """Types of requests (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class BlkStatus(enum.IntEnum):
    """The last byte of every answer (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


_LAYOUT: Final = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3xIIIIIIIIB3x")


class ConfigSpace(NamedTuple):
    """The configuration space (5.2.4); fields of features that a device lacks are zero."""

    capacity: int  #: in sectors
    size_max: int = 0
    seg_max: int = 0
    cylinders: int = 0
    heads: int = 0
    sectors: int = 0
    blk_size: int = 0
    physical_block_exp: int = 0
    alignment_offset: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    writeback: int = 0
    num_queues: int = 0
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_sector_alignment: int = 0
    max_write_zeroes_sectors: int = 0
    max_write_zeroes_seg: int = 0
    write_zeroes_may_unmap: int = 0
    max_secure_erase_sectors: int = 0
    max_secure_erase_seg: int = 0
    secure_erase_sector_alignment: int = 0
    zone_sectors: int = 0
    max_open_zones: int = 0
    max_active_zones: int = 0
    max_append_sectors: int = 0
    write_granularity: int = 0
    zone_model: int = 0

    def pack(self) -> bytes:
        """All 96 bytes."""
        return _LAYOUT.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From as many bytes as a device has; the rest counts as zero."""
        return cls._make(_LAYOUT.unpack(data[: cls.size()].ljust(cls.size(), b"\0")))

    def changes(self, offset: int, data: bytes) -> list[str]:
        """Names of the fields whose value would become another one if `data` were written at `offset`."""
        after = bytearray(self.pack())
        after[offset : offset + len(data)] = data
        fields = zip(self._fields, self, self.unpack(bytes(after)), strict=True)
        return [name for name, old, new in fields if old != new]

    @staticmethod
    def size() -> int:
        """Bytes of the whole space."""
        return _LAYOUT.size
