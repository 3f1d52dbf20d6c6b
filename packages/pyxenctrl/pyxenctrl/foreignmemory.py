# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libxenforeignmemory: mapping memory and resources of other domains (xenforeignmemory.h).

For privileged domains. The library waits for ever for frames that are paged out; :mod:`pyxenctrl.privcmd`
does not.
"""

import ctypes
import enum
import os
from array import array
from collections.abc import Iterable
from functools import cache
from typing import Final, final

from pyxenctrl.handle import Mapper, Mapping, Protection
from pyxenctrl.library import Prototype, declare, failure

__all__ = (
    "SONAME",
    "FUNCTIONS",
    "ForeignMemory",
    "ForeignMapping",
    "ResourceKind",
    "ResourceMapping",
    "library",
)

SONAME: Final = "libxenforeignmemory.so.1"

_HANDLE, _RESOURCE, _ADDRESS = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
_DOMID, _SIZE = ctypes.c_uint16, ctypes.c_size_t

#: What is called, by name without ``xenforeignmemory_``.
FUNCTIONS: Final[dict[str, Prototype]] = {
    "open": (_HANDLE, (ctypes.c_void_p, ctypes.c_uint)),
    "close": (ctypes.c_int, (_HANDLE,)),
    "map2": (
        _ADDRESS,
        (
            _HANDLE,
            ctypes.c_uint32,
            _ADDRESS,
            ctypes.c_int,
            ctypes.c_int,
            _SIZE,
            ctypes.POINTER(ctypes.c_uint64),
            ctypes.POINTER(ctypes.c_int),
        ),
    ),
    "unmap": (ctypes.c_int, (_HANDLE, _ADDRESS, _SIZE)),
    "restrict": (ctypes.c_int, (_HANDLE, _DOMID)),
    "map_resource": (
        _RESOURCE,
        (
            _HANDLE,
            _DOMID,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_ulong,
            ctypes.c_ulong,
            ctypes.POINTER(_ADDRESS),
            ctypes.c_int,
            ctypes.c_int,
        ),
    ),
    "unmap_resource": (ctypes.c_int, (_HANDLE, _RESOURCE)),
    "resource_size": (
        ctypes.c_int,
        (_HANDLE, _DOMID, ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(_SIZE)),
    ),
}


@cache
def library() -> ctypes.CDLL:
    """The library, with its functions declared.

    :raises OSError: it is not installed, or too old.
    """
    return declare(SONAME, "xenforeignmemory_", FUNCTIONS)


class ResourceKind(enum.IntEnum):
    """What can be mapped of a domain besides its memory (``XENMEM_resource_*`` of public/memory.h)."""

    #: Pages of the ioreq server with this id: 0 its buffered ring, 1 and on its slots.
    IOREQ_SERVER = 0
    #: The domain's own grant table: id 0 the entries, id 1 the status words of version 2.
    GRANT_TABLE = 1
    #: The trace buffer of the vCPU with this id.
    VMTRACE_BUF = 2


@final
class ForeignMapping(Mapping):
    """Frames of another domain in this address space, in the order they were asked for.

    :param failed: position and errno of frames that are not there; touching them raises SIGBUS.
    """

    def __init__(self, handle: Mapper, address: int, pages: int, failed: tuple[tuple[int, int], ...]) -> None:
        super().__init__(handle, address, pages)
        self.failed: Final = failed


@final
class ResourceMapping(Mapping):
    """A domain's resource in this address space."""

    def __init__(self, handle: Mapper, address: int, pages: int, resource: int) -> None:
        super().__init__(handle, address, pages)
        self._resource: Final = resource


@final
class ForeignMemory(Mapper):
    """A handle for mapping other domains' memory.

    :raises OSError: the library is not installed, or ``/dev/xen/privcmd`` cannot be opened.
    """

    def __init__(self) -> None:
        self._library = library()
        pointer = self._library.xenforeignmemory_open(None, 0)
        if not pointer:
            raise failure("cannot open /dev/xen/privcmd (is this a privileged Xen domain?)")
        super().__init__(pointer)

    def map(
        self, domid: int, frames: Iterable[int], protection: Protection, *, partial: bool = False
    ) -> ForeignMapping:
        """Map frames next to each other.

        :param frames: guest frame numbers (machine frames of a PV domain).
        :param partial: accept that some frames cannot be mapped and list them in ``failed``.
        :raises OSError: ESRCH: no such domain; ENOENT: a frame is paged out for now; others: no such frame.
        """
        numbers = array("Q", frames)
        count = len(numbers)
        if not count:
            raise ValueError("mapping no frames at all")
        errors = (ctypes.c_int * count)()
        array_of = (ctypes.c_uint64 * count).from_buffer(numbers)
        with self._live() as handle:
            address = self._library.xenforeignmemory_map2(
                handle, domid, None, protection, 0, count, array_of, errors
            )
            if not address:
                raise failure(f"cannot map {count} frames of domain {domid} from frame {numbers[0]:#x} on")
            # The call succeeds when single pages fail: only the error array tells.
            failed: tuple[tuple[int, int], ...] = ()
            if bytes(errors) != bytes(ctypes.sizeof(errors)):
                failed = tuple((index, abs(code)) for index, code in enumerate(errors) if code)
            mapping = ForeignMapping(self, address, count, failed)
        if failed and not partial:
            mapping.close()
            index, code = failed[0]
            raise OSError(
                code,
                f"cannot map {len(failed)} of {count} frames of domain {domid}, "
                f"the first is {numbers[index]:#x}: {os.strerror(code)}",
            )
        return mapping

    def map_resource(
        self, domid: int, kind: ResourceKind, id: int, frame: int, frames: int, protection: Protection
    ) -> ResourceMapping:
        """Map frames of a domain's resource.

        :param id: which of this kind.
        :param frame: the first one.
        :raises OSError: ESRCH: no such domain; EINVAL, ENOENT: no such resource, or not so many frames;
            EOPNOTSUPP: the kernel is too old.
        """
        address = ctypes.c_void_p()
        with self._live() as handle:
            resource = self._library.xenforeignmemory_map_resource(
                handle, domid, kind, id, frame, frames, ctypes.byref(address), protection, 0
            )
            if not resource or address.value is None:
                raise failure(f"cannot map {frames} frames of {_named(kind, id)} of domain {domid}")
            return ResourceMapping(self, address.value, frames, resource)

    def resource_size(self, domid: int, kind: ResourceKind, id: int) -> int:
        """How many bytes of a resource can be mapped.

        :raises OSError: as for :meth:`map_resource`.
        """
        size = ctypes.c_size_t()
        with self._live() as handle:
            if self._library.xenforeignmemory_resource_size(handle, domid, kind, id, ctypes.byref(size)):
                raise failure(f"cannot tell the size of {_named(kind, id)} of domain {domid}")
        return size.value

    def restrict(self, domid: int) -> None:
        """Let this handle map memory of one domain only from now on; that cannot be undone.

        Afterwards other domains are EPERM.

        :raises OSError: EINVAL: it is restricted to another domain.
        """
        with self._live() as handle:
            if self._library.xenforeignmemory_restrict(handle, domid):
                raise failure(f"cannot restrict the foreign memory handle to domain {domid}")

    def _unmap(self, pointer: int, mapping: Mapping) -> None:
        if isinstance(mapping, ResourceMapping):
            failed = self._library.xenforeignmemory_unmap_resource(pointer, mapping._resource)
        else:
            failed = self._library.xenforeignmemory_unmap(pointer, mapping.address, mapping.pages)
        if failed:
            raise failure(f"cannot unmap {mapping.pages} frames at {mapping.address:#x}")

    def _close(self, pointer: int) -> None:
        if self._library.xenforeignmemory_close(pointer):
            raise failure("cannot close the foreign memory handle")


def _named(kind: ResourceKind, id: int) -> str:
    return f"the resource {kind.name.lower()} {id}"
