# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Memory of our own that the hypervisor copies to and from, used again and again.

The kernel looks up each page of it for a copy, and has to make it first if it is new, which takes longer than
the copy itself.
"""

from typing import Any, Final, final

from vhost._core import ffi

__all__ = ("BouncePool",)

PAGE_SIZE: Final = 4096
#: Buffers that are kept, and the bytes of the largest one; the least has STEP.
KEPT: Final = 4
KEPT_BYTES: Final = 1 << 20
STEP: Final = 1 << 16


@final
class BouncePool:
    """Buffers for batches; what is in them is what was last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._free: list[Any] = []

    def take(self, n: int) -> tuple[object, int]:
        """At least `n` bytes: who owns them, until its last reference is gone, and the address of a page."""
        need = n + PAGE_SIZE - 1  # it may begin anywhere
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = None
        if buffer is None or len(buffer) < need:
            buffer = ffi.new("uint8_t[]", -(-need // STEP) * STEP)
        start = int(ffi.cast("uintptr_t", buffer))
        return ffi.gc(buffer, self._put), start + -start % PAGE_SIZE

    def _put(self, buffer: Any) -> None:
        if len(self._free) < KEPT and len(buffer) <= KEPT_BYTES:
            self._free.append(buffer)
