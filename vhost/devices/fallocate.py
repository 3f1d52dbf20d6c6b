# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``fallocate(2)`` with its modes; of the ``os`` module, :func:`os.posix_fallocate` can only add space.

Knows the system call, not what a disk does with it.
"""

import errno
import os
from typing import Final

from vhost._core import ffi, lib

__all__ = ("PUNCH_HOLE", "ZERO_RANGE", "fallocate")

#: Give the space back; the range reads as zeroes. The size of the file stays.
PUNCH_HOLE: Final[int] = lib.FALLOC_FL_PUNCH_HOLE | lib.FALLOC_FL_KEEP_SIZE
#: The range reads as zeroes and keeps its space. The size of the file stays.
ZERO_RANGE: Final[int] = lib.FALLOC_FL_ZERO_RANGE | lib.FALLOC_FL_KEEP_SIZE


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change how `length` bytes at `offset` of the file `fd` are stored; other threads run meanwhile.

    :param mode: :data:`PUNCH_HOLE` or :data:`ZERO_RANGE`.
    :raises OSError: as the system reports it; ``EOPNOTSUPP`` when the file system cannot do that.
    """
    while lib.fallocate(fd, mode, offset, length):
        code = ffi.errno
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
