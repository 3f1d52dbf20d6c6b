# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The driver's side of a virtqueue: offers chains to a device, takes them back used."""

from collections.abc import Sequence

from vhost._core import ffi, lib
from vhost.errors import VirtqueueError
from vhost.virtqueue.layout import RingLayout

__all__ = ("DriverQueue",)


class DriverQueue:
    """A split virtqueue as a driver drives it.

    :param layout: the ring's size.
    :param desc: memory of the descriptor table, zeroed, shared with the device; likewise ``avail``, ``used``.
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
        self.size = layout.size
        self.table_len = 0 if tables is None else table_len
        pointers = {
            "desc": ffi.from_buffer(desc, require_writable=True),
            "avail": ffi.from_buffer(avail, require_writable=True),
            "used": ffi.from_buffer(used, require_writable=True),
            "next": ffi.new("uint16_t[]", layout.size),
            "count": ffi.new("uint16_t[]", layout.size),
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
                "features": lib.VH_F_EVENT_IDX if event_idx else 0,
            },
        )
        self._used = ffi.new("struct vh_used[]", layout.size)
        lib.vh_driver_init(self._d)

    @property
    def free(self) -> int:
        """Descriptors not in use."""
        return int(self._d.n_free)

    def add(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]]) -> int:
        """Queue a chain of ``(guest address, length)`` buffers; the device sees it after :meth:`publish`.

        Returns its head, which names it until it is used, or -1 when there is no room now.

        :raises ValueError: the ring can never hold it.
        """
        bufs = [(gpa, length, 0) for gpa, length in readable] + [(gpa, length, 1) for gpa, length in writable]
        head = lib.vh_driver_add(self._d, ffi.new("struct vh_buf[]", bufs), len(bufs))
        if head == lib.VH_D_TOO_BIG:
            raise ValueError(
                f"{len(bufs)} buffers in a chain; this ring takes 1 to {max(self.size, self.table_len)}"
            )
        return -1 if head < 0 else head

    def publish(self) -> bool:
        """Show the device what was added; true if it wants a kick."""
        return bool(lib.vh_driver_publish(self._d))

    def poll(self, limit: int | None = None) -> list[tuple[int, int]]:
        """Chains the device has used, as ``(head, bytes written)``, in its order.

        :raises VirtqueueError: the device returned what it was not given.
        """
        n = lib.vh_driver_poll(self._d, self._used, self.size if limit is None else min(limit, self.size))
        if n < 0:
            raise VirtqueueError(
                "the device returned a descriptor that is not in flight, or more than it was given"
            )
        return [(used.id, used.len) for used in self._used[0:n]]

    def calls_off(self) -> None:
        """Ask the device for no calls."""
        lib.vh_driver_calls_off(self._d)

    def calls_on(self) -> bool:
        """Ask for a call at the next used element; true if one is there already."""
        return bool(lib.vh_driver_calls_on(self._d))
