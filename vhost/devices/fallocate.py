# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``fallocate(2)`` with its modes; of the ``os`` module, :func:`os.posix_fallocate` can only add space.

Knows the system call, not what a disk does with it.
"""

import ctypes
import errno
import os

__all__ = ("PUNCH_HOLE", "ZERO_RANGE", "fallocate")

_KEEP_SIZE = 0x01
#: Give the space back; the range reads as zeroes. The size of the file stays.
PUNCH_HOLE = 0x02 | _KEEP_SIZE
#: The range reads as zeroes and keeps its space. The size of the file stays.
ZERO_RANGE = 0x10 | _KEEP_SIZE

_libc = ctypes.CDLL(None, use_errno=True)
# On 32-bit glibc the plain name takes a 32-bit offset; where there is only the plain name, it takes 64 bits.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change how `length` bytes at `offset` of the file `fd` are stored; other threads run meanwhile.

    :param mode: :data:`PUNCH_HOLE` or :data:`ZERO_RANGE`.
    :raises OSError: as the system reports it; ``EOPNOTSUPP`` when the file system cannot do that.
    """
    while _fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
