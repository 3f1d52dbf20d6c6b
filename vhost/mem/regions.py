# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Regions of guest memory, as a front-end describes them and as they are mapped, for every build.

Does not map anything, and knows neither files nor grants.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, final

from vhost._core import ffi

__all__ = ("RegionSpec", "Region", "host_view")


class RegionSpec(NamedTuple):
    """One region as the front-end describes it (vhost-user, "Memory region description").

    :param guest_addr: guest-physical address.
    :param size: bytes.
    :param user_addr: the same memory in the front-end's own address space.
    :param offset: where the region starts in the file that came with it, bytes.
    :param xen_flags: "xen mmap flags", 0 without XEN_MMAP.
    :param domid: the Xen domain the memory belongs to.
    """

    guest_addr: int
    size: int
    user_addr: int
    offset: int = 0
    xen_flags: int = 0
    domid: int = 0

    @property
    def guest_end(self) -> int:
        """One past the last guest-physical address."""
        return self.guest_addr + self.size

    @property
    def user_end(self) -> int:
        """One past the last front-end virtual address."""
        return self.user_addr + self.size

    def __str__(self) -> str:
        return (
            f"region guest {self.guest_addr:#x}..{self.guest_end:#x} "
            f"user {self.user_addr:#x}..{self.user_end:#x} offset {self.offset:#x}"
        )


@final
class Region:
    """A region and its mapping, immutable. The mapping lasts as long as anything refers to the region, its
    ``view`` or a slice of that.

    :param spec: what the front-end described.
    :param view: the whole region in this process; ``None``: mapped per use, unless there is a `mapping`.
    :param address: host address of ``view``, 0 without one.
    :param writable: whether devices may write here.
    :param guard: slot of ``vh_guard_add``, 0: none.
    :param source: what parts of it are mapped from, if there is no view.
    :param mapping: in place of a view: owns the mapping; the view is made when it is first asked for.
    :param readable: whether devices may read here.
    """

    __slots__ = (
        "spec", "address", "writable", "readable", "guard", "source", "_view", "_mapping", "__weakref__"
    )  # fmt: skip

    def __init__(
        self,
        spec: RegionSpec,
        view: memoryview | None,
        address: int,
        writable: bool,
        guard: int = 0,
        source: object = None,
        mapping: object = None,
        readable: bool = True,
    ) -> None:
        self.spec: Final = spec
        self.address: Final = address
        self.writable: Final = writable
        self.readable: Final = readable
        self.guard: Final = guard
        self.source: Final = source
        self._view = view
        self._mapping = mapping

    @property
    def view(self) -> memoryview | None:
        """The whole region in this process; ``None``: mapped per use."""
        if self._view is None and self._mapping is not None:
            self._view = host_view(self.address, self.spec.size, partial(_let_go, self._mapping))
        return self._view

    @property
    def mapped(self) -> bool:
        """Whether the whole region is mapped."""
        return self._view is not None or self._mapping is not None


def _let_go(mapping: object, _: Any) -> None:
    # The mapping is given back with the last reference to it, of which the caller had one.
    return None


def host_view(address: int, size: int, release: Callable[[Any], object]) -> memoryview:
    """The memory at a host address, as a view that owns it.

    :param release: called once, with a pointer, when the view and every slice of it are gone.
    """
    pointer = ffi.gc(ffi.cast("uint8_t *", address), release)
    return memoryview(ffi.buffer(pointer, size))
