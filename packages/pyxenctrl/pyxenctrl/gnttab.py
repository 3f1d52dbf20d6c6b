# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libxengnttab: mapping and copying pages that other domains granted to this one (xengnttab.h).

Granting pages of our own is :mod:`pyxenctrl.gntshr`.
"""

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache
from typing import Final, final

from pyxenctrl.grantcopy import CopySegment, Status
from pyxenctrl.handle import PAGE_SIZE, Mapper, Mapping, Protection
from pyxenctrl.library import Prototype, declare, failure

__all__ = ("SONAME", "FUNCTIONS", "NONE", "GrantTable", "GrantMapping", "library", "notification")

SONAME: Final = "libxengnttab.so.1"

_U32 = ctypes.c_uint32
_U32S = ctypes.POINTER(ctypes.c_uint32)
_ARRAYS = (array, memoryview)
_HANDLE, _ADDRESS, _PROTECTION = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int

#: What is called, by name without ``xengnttab_``.
FUNCTIONS: Final[dict[str, Prototype]] = {
    "open": (_HANDLE, (ctypes.c_void_p, ctypes.c_uint)),
    "close": (ctypes.c_int, (_HANDLE,)),
    "map_grant_ref": (_ADDRESS, (_HANDLE, _U32, _U32, _PROTECTION)),
    "map_grant_refs": (_ADDRESS, (_HANDLE, _U32, _U32S, _U32S, _PROTECTION)),
    "map_domain_grant_refs": (_ADDRESS, (_HANDLE, _U32, _U32, _U32S, _PROTECTION)),
    "map_grant_ref_notify": (_ADDRESS, (_HANDLE, _U32, _U32, _PROTECTION, _U32, _U32)),
    "unmap": (ctypes.c_int, (_HANDLE, _ADDRESS, _U32)),
    "set_max_grants": (ctypes.c_int, (_HANDLE, _U32)),
    "grant_copy": (ctypes.c_int, (_HANDLE, _U32, ctypes.POINTER(CopySegment))),
}

SEGMENT_SIZE: Final = ctypes.sizeof(CopySegment)
# Where a segment's status is, counted in items of its size.
STATUS_FIELD: Final = CopySegment.status.offset // CopySegment.status.size

#: No byte to clear, no port to notify: the -1 of the C interface.
NONE: Final = 0xFFFFFFFF


@cache
def library() -> ctypes.CDLL:
    """The library, with its functions declared.

    :raises OSError: it is not installed, or too old.
    """
    return declare(SONAME, "xengnttab_", FUNCTIONS)


def notification(clear: int | None, port: int | None) -> tuple[int, int]:
    """What happens when a page is unmapped, as the library takes it.

    :param clear: the byte of the page that becomes 0.
    :param port: the event channel that is notified.
    :raises ValueError: the byte is outside the page.
    """
    if clear is not None and not 0 <= clear < PAGE_SIZE:
        raise ValueError(f"byte {clear:#x} is outside the page")  # the library would ignore it
    return NONE if clear is None else clear, NONE if port is None else port


@final
class GrantMapping(Mapping):
    """Granted pages in this address space, in the order of their references."""


@final
class GrantTable(Mapper):
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

    def map_grant_ref_notify(
        self,
        domid: int,
        ref: int,
        protection: Protection,
        *,
        clear: int | None = None,
        port: int | None = None,
    ) -> GrantMapping:
        """Map one granted page so that its owner learns of the unmapping, even when this process is killed.

        :param clear: the byte of the page that becomes 0 then; the page must be mapped writable.
        :param port: the event channel, open in this process, that is notified then.
        :raises OSError: EINVAL: no such grant, it is read-only, or there is no such port.
        """
        offset, event = notification(clear, port)
        with self._live() as handle:
            address = self._library.xengnttab_map_grant_ref_notify(
                handle, domid, ref, protection, offset, event
            )
            return self._made(address, [domid], [ref], protection)

    def map_grant_refs(
        self, domids: Sequence[int], refs: Sequence[int], protection: Protection
    ) -> GrantMapping:
        """Map pages granted by several domains, one domain per reference, next to each other.

        Writable buffers of 32-bit unsigned items (``array("I")``) are handed on as they are.

        :raises OSError: EINVAL: one of them is no such grant, or read-only but wanted writable.
        """
        if len(domids) != len(refs):
            raise ValueError(f"{len(refs)} grant references need as many domains, not {len(domids)}")
        domains, numbers = _numbers(domids), _numbers(refs)
        with self._live() as handle:
            address = self._library.xengnttab_map_grant_refs(handle, len(refs), domains, numbers, protection)
            return self._made(address, domids, refs, protection)

    def map_domain_grant_refs(self, domid: int, refs: Sequence[int], protection: Protection) -> GrantMapping:
        """Map pages granted by one domain, next to each other.

        A writable buffer of 32-bit unsigned items (``array("I")``) is handed on as it is.

        :raises OSError: EINVAL: one of them is no such grant, or read-only but wanted writable.
        """
        count, numbers = len(refs), _numbers(refs)
        with self._live() as handle:
            address = self._library.xengnttab_map_domain_grant_refs(handle, count, domid, numbers, protection)
            return self._made(address, [domid], refs, protection)

    def copy(self, segments: "ctypes.Array[CopySegment] | memoryview") -> None:
        """Copy between memory of this process and granted pages without mapping them.

        Each segment's ``status`` tells how it went, also when this raises: the others were copied all the
        same. Memory of this process must be its own, no mapping of another domain's.

        :param segments: an array of them, or a writable buffer with the same content.
        :raises OSError: a segment failed (the first is named), or, EINVAL and EFAULT, the kernel refused one
            for its form or for its memory here; it is then unknown which were copied.
        """
        view = memoryview(segments)
        count = view.nbytes // SEGMENT_SIZE
        first = CopySegment.from_buffer(view) if count else None
        with self._live() as handle:
            if self._library.xengnttab_grant_copy(handle, count, first):
                raise failure(f"cannot copy {count} segments from or to grants")
        if any(memoryview(view.tobytes()).cast("h")[STATUS_FIELD :: SEGMENT_SIZE // 2]):
            raise _not_copied((CopySegment * count).from_buffer(view))

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

    def _unmap(self, pointer: int, mapping: Mapping) -> None:
        if self._library.xengnttab_unmap(pointer, mapping.address, mapping.pages):
            raise failure(f"cannot unmap {mapping.pages} grants at {mapping.address:#x}")

    def _close(self, pointer: int) -> None:
        if self._library.xengnttab_close(pointer):
            raise failure("cannot close the grant table handle")


def _not_copied(segments: "ctypes.Array[CopySegment]") -> OSError:
    # The exception for the first of them that failed.
    index, segment = next((index, segment) for index, segment in enumerate(segments) if segment.status)
    status = Status.of(segment.status)
    return OSError(
        status.errno,
        f"cannot copy {segment} (segment {index} of {len(segments)}): "
        f"{status.words} (GNTST_{status.name.lower()})",
    )


def _numbers(values: Sequence[int]) -> "ctypes.c_uint32 | ctypes.Array[ctypes.c_uint32]":
    # Some numbers as C has them: their own memory, by its first item, if they are an array already.
    if isinstance(values, _ARRAYS):
        view = memoryview(values)
        if view.format == "I" and view.nbytes and view.c_contiguous and not view.readonly:
            return _U32.from_buffer(view)  # an array's type would have to be made for each length
    return (_U32 * len(values)).from_buffer(array("I", values))
