# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libxenforeignmemory: mapping memory of other domains by frame number (xenforeignmemory.h).

For privileged domains. Resources other than memory are not bound.
"""

import ctypes
import os
from array import array
from collections.abc import Iterable
from functools import cache
from typing import Final, final

from pyxenctrl.handle import Handle, Mapping, Protection
from pyxenctrl.library import failure, load

__all__ = ("SONAME", "ForeignMemory", "ForeignMapping", "library")

SONAME: Final = "libxenforeignmemory.so.1"


@cache
def library() -> ctypes.CDLL:
    """The library, with its functions declared.

    :raises FileNotFoundError: it is not installed.
    """
    lib = load(SONAME)
    handle, address, size = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    frames, errors = ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_int)
    for name, result, arguments in (
        ("open", handle, (ctypes.c_void_p, ctypes.c_uint)),
        ("close", ctypes.c_int, (handle,)),
        (
            "map2",
            address,
            (handle, ctypes.c_uint32, address, ctypes.c_int, ctypes.c_int, size, frames, errors),
        ),
        ("unmap", ctypes.c_int, (handle, address, size)),
    ):
        function = getattr(lib, f"xenforeignmemory_{name}")
        function.restype = result
        function.argtypes = arguments
    return lib


@final
class ForeignMapping(Mapping):
    """Frames of another domain in this address space, in the order they were asked for.

    :param failed: position and errno of frames that are not there; touching them raises SIGBUS.
    """

    def __init__(self, handle: Handle, address: int, pages: int, failed: tuple[tuple[int, int], ...]) -> None:
        super().__init__(handle, address, pages)
        self.failed: Final = failed


@final
class ForeignMemory(Handle):
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

    def _unmap(self, pointer: int, address: int, pages: int) -> None:
        if self._library.xenforeignmemory_unmap(pointer, address, pages):
            raise failure(f"cannot unmap {pages} frames at {address:#x}")

    def _close(self, pointer: int) -> None:
        if self._library.xenforeignmemory_close(pointer):
            raise failure("cannot close the foreign memory handle")
