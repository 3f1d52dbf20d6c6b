# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libxengnttab, its other half: granting pages of this domain to others (xengntshr_* in xengnttab.h).

The pages are allocated for it; memory that exists already cannot be granted.
"""

import ctypes
from functools import cache
from typing import Final, final

from pyxenctrl.gnttab import SONAME, notification
from pyxenctrl.handle import Mapper, Mapping
from pyxenctrl.library import Prototype, declare, failure

__all__ = ("FUNCTIONS", "GrantShare", "SharedPages", "library")

_U32 = ctypes.c_uint32
_U32S = ctypes.POINTER(ctypes.c_uint32)
_HANDLE, _ADDRESS, _WRITABLE = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int

#: What is called, by name without ``xengntshr_``.
FUNCTIONS: Final[dict[str, Prototype]] = {
    "open": (_HANDLE, (ctypes.c_void_p, ctypes.c_uint)),
    "close": (ctypes.c_int, (_HANDLE,)),
    "share_pages": (_ADDRESS, (_HANDLE, _U32, ctypes.c_int, _U32S, _WRITABLE)),
    "share_page_notify": (_ADDRESS, (_HANDLE, _U32, _U32S, _WRITABLE, _U32, _U32)),
    "unshare": (ctypes.c_int, (_HANDLE, _ADDRESS, _U32)),
}


@cache
def library() -> ctypes.CDLL:
    """The library, with its functions declared.

    :raises OSError: it is not installed, or too old.
    """
    return declare(SONAME, "xengntshr_", FUNCTIONS)


@final
class SharedPages(Mapping):
    """Pages that another domain may map, zeroed at first, readable and writable here.

    They go back when they are closed here and the other domain has unmapped them too.
    """

    def __init__(self, handle: Mapper, address: int, refs: tuple[int, ...]) -> None:
        super().__init__(handle, address, len(refs))
        #: Their grant references, in the order of the pages.
        self.refs: Final = refs


@final
class GrantShare(Mapper):
    """A handle for granting pages.

    :raises OSError: the library is not installed, or ``/dev/xen/gntalloc`` cannot be opened.
    """

    def __init__(self) -> None:
        self._library = library()
        pointer = self._library.xengntshr_open(None, 0)
        if not pointer:
            raise failure(
                "cannot open /dev/xen/gntalloc (is this Xen, and is the module xen-gntalloc loaded?)"
            )
        super().__init__(pointer)

    def share_pages(self, domid: int, count: int, *, writable: bool) -> SharedPages:
        """Grant new pages to a domain.

        :param writable: whether the other domain may write to them.
        :raises OSError: ENOSPC: too many (parameter ``limit`` of xen-gntalloc); ENOMEM.
        """
        refs = (_U32 * count)()
        with self._live() as handle:
            address = self._library.xengntshr_share_pages(handle, domid, count, refs, writable)
            if not address:
                raise failure(f"cannot grant {count} pages to domain {domid}")
            return SharedPages(self, address, tuple(refs))

    def share_page_notify(
        self, domid: int, *, writable: bool, clear: int | None = None, port: int | None = None
    ) -> SharedPages:
        """Grant a new page to a domain so that it learns when we unmap it, even by being killed.

        :param clear: the byte of the page that becomes 0 then.
        :param port: the event channel, open in this process, that is notified then.
        :raises OSError: as for :meth:`share_pages`; EINVAL: no such port.
        """
        refs = (_U32 * 1)()
        offset, event = notification(clear, port)
        with self._live() as handle:
            address = self._library.xengntshr_share_page_notify(handle, domid, refs, writable, offset, event)
            if not address:
                raise failure(f"cannot grant a page to domain {domid} with a notification")
            return SharedPages(self, address, tuple(refs))

    def _unmap(self, pointer: int, mapping: Mapping) -> None:
        if self._library.xengntshr_unshare(pointer, mapping.address, mapping.pages):
            raise failure(f"cannot unmap {mapping.pages} granted pages at {mapping.address:#x}")

    def _close(self, pointer: int) -> None:
        if self._library.xengntshr_close(pointer):
            raise failure("cannot close the grant share handle")
