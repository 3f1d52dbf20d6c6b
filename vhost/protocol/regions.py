# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Regions of guest memory and tables of them; with XEN_MMAP each has two more fields.

Layouts are those of vhost-user.rst, «Memory region description». Whether a table makes sense as memory is
not known here.
"""

import enum
import struct
from typing import NamedTuple, Self

from vhost.errors import RemoteProtocolError

from .message import Payload, payload
from .terms import Terms

__all__ = ("XenFlag", "MemoryRegion", "MemTable", "encode_regions", "decode_regions")


class XenFlag(enum.IntFlag):
    """How a region of a Xen guest is mapped; no bit set: like any file."""

    FOREIGN = 1 << 0
    GRANT = 1 << 1
    NO_ADVANCE_MAP = 1 << 8


_NO_ADVANCE_MAP_8 = 1 << 3  # see Quirks.xen_no_advance_map_8


_REGION = struct.Struct("=QQQQ")
_REGION_XEN = struct.Struct("=QQQQII")


class MemoryRegion(NamedTuple):
    """A piece of guest memory and where its bytes are.

    :param guest_addr: guest-physical address of the first byte; *size* in bytes.
    :param user_addr: address in the front-end.
    :param mmap_offset: of the first byte in the file.
    :param xen_flags: :class:`XenFlag`; *domid* the domain. On the wire only with XEN_MMAP.
    """

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    xen_flags: int = 0
    domid: int = 0

    @staticmethod
    def wire_size(terms: Terms) -> int:
        """Bytes of one region: 32, or 40 with XEN_MMAP."""
        return _REGION_XEN.size if terms.xen else _REGION.size

    @classmethod
    def decode_from(cls, data: bytes, offset: int, terms: Terms) -> Self:
        """The region at *offset* of *data*, which must hold all of it."""
        if not terms.xen:
            return cls(*_REGION.unpack_from(data, offset))
        guest, size, user, place, flags, domid = _REGION_XEN.unpack_from(data, offset)
        if flags & _NO_ADVANCE_MAP_8 and terms.quirks.xen_no_advance_map_8:
            flags = flags & ~_NO_ADVANCE_MAP_8 | XenFlag.NO_ADVANCE_MAP
        return cls(guest, size, user, place, flags, domid)

    def encode(self, terms: Terms) -> bytes:
        """The bytes of this region."""
        place = (self.guest_addr, self.size, self.user_addr, self.mmap_offset)
        if not terms.xen:
            return _REGION.pack(*place)
        flags = int(self.xen_flags)
        if flags & XenFlag.NO_ADVANCE_MAP and terms.quirks.write_xen_no_advance_map_8:
            flags = flags & ~XenFlag.NO_ADVANCE_MAP | _NO_ADVANCE_MAP_8
        return _REGION_XEN.pack(*place, flags, self.domid)

    def __str__(self) -> str:
        xen = f" xen={self.xen_flags:#x} domid={self.domid}" if self.xen_flags or self.domid else ""
        return (
            f"{self.guest_addr:#x}+{self.size:#x} user={self.user_addr:#x} offset={self.mmap_offset:#x}{xen}"
        )


_TABLE = struct.Struct("=I4x")
_FULL_TABLE = 8


def encode_regions(regions: tuple[MemoryRegion, ...], terms: Terms) -> bytes:
    """The bytes of a memory table, with the regions used."""
    return _TABLE.pack(len(regions)) + b"".join([region.encode(terms) for region in regions])


def decode_regions(data: bytes, terms: Terms, name: str) -> tuple[MemoryRegion, ...]:
    """The regions of the memory table that is *data*.

    :raises RemoteProtocolError: too many regions, or a size that does not fit their number.
    """
    if len(data) < _TABLE.size:
        raise RemoteProtocolError(
            f"{name} has a payload of {len(data)} bytes, not even its {_TABLE.size} byte head"
        )
    (count,) = _TABLE.unpack_from(data)
    limit = max(terms.max_regions, 32) if terms.quirks.many_regions else terms.max_regions
    if count > limit:
        raise RemoteProtocolError(f"{name} has {count} regions, more than the {limit} this side takes")
    each = MemoryRegion.wire_size(terms)
    carried, odd = divmod(len(data) - _TABLE.size, each)
    more = terms.quirks.full_mem_table and count < carried <= _FULL_TABLE
    if odd or (carried != count and not more):
        wanted = f"{_TABLE.size + count * each}"
        if terms.quirks.full_mem_table and count < _FULL_TABLE:
            wanted += f" (or up to {_TABLE.size + _FULL_TABLE * each} with regions that are not used)"
        xen = not terms.xen and len(data) == _TABLE.size + count * _REGION_XEN.size
        why = f"; regions of {_REGION_XEN.size} bytes need XEN_MMAP, which was not negotiated" if xen else ""
        raise RemoteProtocolError(
            f"{name} with {count} regions has a payload of {len(data)} bytes, not {wanted}{why}"
        )
    if not terms.xen:
        table = data[_TABLE.size : _TABLE.size + count * each]
        return tuple([MemoryRegion(*place) for place in _REGION.iter_unpack(table)])
    return tuple(MemoryRegion.decode_from(data, _TABLE.size + i * each, terms) for i in range(count))


@payload()
class MemTable(Payload):
    """Regions with the back-end's own addresses as user addresses: the answer in postcopy."""

    regions: tuple[MemoryRegion, ...]

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        return cls(decode_regions(data, terms, cls.name))

    def encode(self, terms: Terms) -> bytes:
        return encode_regions(self.regions, terms)
