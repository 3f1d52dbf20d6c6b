# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The driver's side of a virtqueue: offers chains to a device, takes them back used."""

import struct
from collections.abc import Sequence
from typing import Any, Final

from vhost._core import ffi, lib
from vhost.errors import VirtqueueError
from vhost.virtqueue.layout import RingLayout

__all__ = ("DriverQueue", "WORDS")

# struct vh_buf and struct vh_used of csrc/api/driver.h.
_BUF: Final = struct.Struct("=QII")
_USED: Final = struct.Struct("=II")

# What enum vh_driver_error means.
WORDS: Final = {
    lib.VH_D_BAD_USED: "the device returned a descriptor that is not in flight, or more than it was given",
    lib.VH_D_BAD_LEN: "the device says it wrote more bytes than there was room for",
}


class DriverQueue:
    """A virtqueue as a driver drives it: a split one, or, with the layout of one, a packed one.

    :param layout: the ring's size and kind.
    :param desc: memory of the descriptor table, zeroed, shared with the device; likewise ``avail``, ``used``.
        Of a packed ring these are the ring and the event suppression structures of driver and device.
    :param event_idx: RING_EVENT_IDX was negotiated.
    :param in_order: IN_ORDER was negotiated: the device may return many chains by naming the last of them.
    :param big_endian: a split ring of a legacy driver on a big-endian machine.
    :param check: a device that says it wrote more than it could is an error.
    :param tables: memory for indirect tables, ``table_len`` descriptors for each entry of the ring, at guest
        address ``tables_gpa``; None to use direct chains only.

    Synchronization: none.
    """

    def __init__(
        self,
        layout: RingLayout,
        desc: memoryview,
        avail: memoryview,
        used: memoryview,
        *,
        event_idx: bool = False,
        in_order: bool = False,
        big_endian: bool = False,
        check: bool = False,
        tables: memoryview | None = None,
        tables_gpa: int = 0,
        table_len: int = 0,
    ) -> None:
        parts = (
            ("descriptor table", desc, layout.descriptor),
            ("avail", avail, layout.avail),
            ("used", used, layout.used),
        )
        for name, view, need in parts:
            if len(view) < need:
                raise ValueError(f"{name} memory has {len(view)} bytes; a ring of {layout.size} needs {need}")
        if tables is not None and len(tables) < 16 * layout.size * table_len:
            raise ValueError(f"{len(tables)} bytes for {layout.size} tables of {table_len} descriptors")
        self.packed = layout.packed
        if self.packed and big_endian:
            raise ValueError("a packed ring is always little-endian; big_endian is for legacy split rings")
        self.size = layout.size
        self.table_len = 0 if tables is None else table_len
        kind = lib.VH_PACKED if self.packed else lib.VH_SPLIT_BIG if big_endian else lib.VH_SPLIT
        pointers = {
            "desc": ffi.from_buffer(desc, require_writable=True),
            "avail": ffi.from_buffer(avail, require_writable=True),
            "used": ffi.from_buffer(used, require_writable=True),
            "flight": ffi.new("struct vh_flight[]", layout.size),
            "order": ffi.new("uint16_t[]", layout.size) if in_order else ffi.NULL,
            "tables": ffi.NULL if tables is None else ffi.from_buffer(tables, require_writable=True),
        }
        self._keep = pointers
        self._d = ffi.new(
            "struct vh_driver *",
            {
                **pointers,
                "tables_gpa": tables_gpa,
                "table_len": self.table_len,
                "num": layout.size,
                "kind": kind,
                "features": (lib.VH_F_EVENT_IDX if event_idx else 0) | (lib.VH_F_IN_ORDER if in_order else 0),
                "check": check,
            },
        )
        self._used = ffi.new("struct vh_used[]", layout.size)
        self._returned = ffi.buffer(self._used)
        self._longest = max(self.size, self.table_len)
        self._bufs = ffi.new("struct vh_buf[]", self._longest)
        self._wanted = ffi.buffer(self._bufs)
        lib.vh_driver_init(self._d)

    @property
    def cdata(self) -> Any:
        """The ``struct vh_driver *`` of the C core."""
        return self._d

    @property
    def free(self) -> int:
        """Descriptors not in use."""
        return int(self._d.n_free)

    @property
    def base(self) -> int:
        """Where a device goes on that knows of nothing but what it has returned.

        Of a split ring the next used index, which is also the avail index unless chains are in flight. Of a
        packed one both positions with their wrap counters, the used one twice, as vhost-user writes them.
        """
        used = int(self._d.last_used)
        if not self.packed:
            return used
        used |= int(self._d.used_wrap) << 15
        return used << 16 | used

    def add(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]]) -> int:
        """Queue a chain of ``(guest address, length)`` buffers; the device sees it after :meth:`publish`.

        Returns an id, which names it until it is used, or -1 when there is no room now.

        :raises ValueError: the ring can never hold it.
        """
        n = len(readable) + len(writable)
        if not 0 < n <= self._longest:
            raise ValueError(f"{n} buffers in a chain; this ring takes 1 to {self._longest}")
        at = 0
        for write, buffers in ((0, readable), (1, writable)):
            for gpa, length in buffers:
                _BUF.pack_into(self._wanted, at, gpa, length, write)
                at += _BUF.size
        name = lib.vh_driver_add(self._d, self._bufs, n)
        if name == lib.VH_D_TOO_BIG:
            raise ValueError(f"{n} buffers in a chain; this ring takes 1 to {self._longest}")
        return -1 if name < 0 else name

    def publish(self) -> bool:
        """Show the device what was added; true if it wants a kick."""
        return bool(lib.vh_driver_publish(self._d))

    @property
    def held(self) -> bool:
        """Whether something was added that the device has not been shown."""
        return bool(self._d.added != self._d.shown)

    def poll(self, limit: int | None = None) -> list[tuple[int, int]]:
        """Chains the device has used, as ``(id, bytes written)``, in its order.

        :raises VirtqueueError: the device returned what it was not given, or, with ``check``, says it wrote
            more than it could. The ring is of no use then.
        """
        n = lib.vh_driver_poll(self._d, self._used, self.size if limit is None else min(limit, self.size))
        if n < 0:
            raise VirtqueueError(WORDS[n])
        return list(_USED.iter_unpack(self._returned[: n * _USED.size]))

    def calls_off(self) -> None:
        """Ask the device for no calls."""
        lib.vh_driver_calls_off(self._d)

    def calls_on(self) -> bool:
        """Ask for a call at the next used element; true if one is there already."""
        return bool(lib.vh_driver_calls_on(self._d))
