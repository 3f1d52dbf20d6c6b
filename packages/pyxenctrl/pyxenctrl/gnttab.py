# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libxengnttab: mapping pages that other domains granted to this one (xengnttab.h).

Granting pages of our own (xengntshr) is not bound.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Final, final

from pyxenctrl.handle import Handle, Mapping, Protection
from pyxenctrl.library import failure, load

__all__ = ("SONAME", "GrantTable", "GrantMapping", "library")

SONAME: Final = "libxengnttab.so.1"

_U32 = ctypes.c_uint32
_U32S = ctypes.POINTER(ctypes.c_uint32)


@cache
def library() -> ctypes.CDLL:
    """The library, with its functions declared.

    :raises FileNotFoundError: it is not installed.
    """
    lib = load(SONAME)
    handle, address, protection = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
    for name, result, arguments in (
        ("open", handle, (ctypes.c_void_p, ctypes.c_uint)),
        ("close", ctypes.c_int, (handle,)),
        ("map_grant_ref", address, (handle, _U32, _U32, protection)),
        ("map_grant_refs", address, (handle, _U32, _U32S, _U32S, protection)),
        ("map_domain_grant_refs", address, (handle, _U32, _U32, _U32S, protection)),
        ("unmap", ctypes.c_int, (handle, address, _U32)),
        ("set_max_grants", ctypes.c_int, (handle, _U32)),
    ):
        function = getattr(lib, f"xengnttab_{name}")
        function.restype = result
        function.argtypes = arguments
    return lib


@final
class GrantMapping(Mapping):
    """Granted pages in this address space, in the order of their references."""


@final
class GrantTable(Handle):
    """A handle for mapping grants.

    :raises OSError: the library is not installed, or ``/dev/xen/gntdev`` cannot be opened.
    """

    def __init__(self) -> None:
        self._library = library()
        pointer = self._library.xengnttab_open(None, 0)
        if not pointer:
            raise failure("cannot open /dev/xen/gntdev (is this Xen, and is the module xen-gntdev loaded?)")
        super().__init__(pointer)

    def map_grant_ref(self, domid: int, ref: int, protection: Protection) -> GrantMapping:
        """Map one granted page.

        :raises OSError: EINVAL: no such grant, or granted read-only but wanted writable.
        """
        with self._live() as handle:
            address = self._library.xengnttab_map_grant_ref(handle, domid, ref, protection)
            return self._made(address, [domid], [ref], protection)

    def map_grant_refs(
        self, domids: Sequence[int], refs: Sequence[int], protection: Protection
    ) -> GrantMapping:
        """Map pages granted by several domains, one domain per reference, next to each other.

        :raises OSError: EINVAL: one of them is no such grant, or read-only but wanted writable.
        """
        if len(domids) != len(refs):
            raise ValueError(f"{len(refs)} grant references need as many domains, not {len(domids)}")
        count = len(refs)
        domains, numbers = (_U32 * count)(*domids), (_U32 * count)(*refs)
        with self._live() as handle:
            address = self._library.xengnttab_map_grant_refs(handle, count, domains, numbers, protection)
            return self._made(address, domids, refs, protection)

    def map_domain_grant_refs(self, domid: int, refs: Sequence[int], protection: Protection) -> GrantMapping:
        """Map pages granted by one domain, next to each other.

        :raises OSError: EINVAL: one of them is no such grant, or read-only but wanted writable.
        """
        count = len(refs)
        numbers = (_U32 * count)(*refs)
        with self._live() as handle:
            address = self._library.xengnttab_map_domain_grant_refs(handle, count, domid, numbers, protection)
            return self._made(address, [domid], refs, protection)

    def set_max_grants(self, count: int) -> None:
        """Limit how many grants this handle may map; new kernels accept and ignore it.

        :raises OSError: the kernel refused.
        """
        with self._live() as handle:
            if self._library.xengnttab_set_max_grants(handle, count):
                raise failure(f"cannot set the limit to {count} grants")

    def _made(
        self, address: int | None, domids: Sequence[int], refs: Sequence[int], protection: Protection
    ) -> GrantMapping:
        if not address:
            domains = ", ".join(str(domid) for domid in sorted(set(domids)))
            first = f" from reference {refs[0]:#x} on" if refs else ""
            how = "writable" if protection & Protection.WRITE else "read-only"
            raise failure(f"cannot map {len(refs)} grants of domain {domains}{first} {how}")
        return GrantMapping(self, address, len(refs))

    def _unmap(self, pointer: int, address: int, pages: int) -> None:
        if self._library.xengnttab_unmap(pointer, address, pages):
            raise failure(f"cannot unmap {pages} grants at {address:#x}")

    def _close(self, pointer: int) -> None:
        if self._library.xengnttab_close(pointer):
            raise failure("cannot close the grant table handle")
