# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The native data path of one queue of a block device: csrc/api/blk.h, as Python holds it."""

from collections.abc import Callable
from typing import Any

from vhost._core import ffi

__all__ = ("BlkPath",)


class BlkPath:
    """A data path that never has requests in flight.

    :param init: fills the structure, for a disk.
    :param core: the ``struct vh_blk`` of the disk.
    """

    def __init__(self, init: Callable[[Any, Any], None], core: Any) -> None:
        self._keep = core
        self._path = ffi.new("struct vh_blk_path *")
        init(self._path, core)

    @property
    def cdata(self) -> Any:
        """The ``struct vh_path`` of it."""
        return ffi.addressof(self._path.path)

    @property
    def transfers(self) -> int:
        """Reads and writes that went to a file."""
        return int(self._path.transfers)

    @property
    def calls(self) -> int:
        """System calls, or operations of io_uring, that took them there: fewer where requests were merged."""
        return int(self._path.calls)

    def close(self) -> None:
        """Release what it holds; nothing may be in flight."""
