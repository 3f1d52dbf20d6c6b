# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Locks on images, so that no two programs write one: those of QEMU, which then keeps away too.

QEMU (block/file-posix.c) takes shared locks of single bytes: byte 100 + n says "I use permission n", byte
200 + n says "nobody else may use it". Whoever comes looks for bytes of others that speak against him. The
locks belong to the open file (``F_OFD_SETLK``), so a second opening in the same process counts too.
"""

import errno
import fcntl
import logging
import struct
import time

from vhost.errors import DeviceError

__all__ = ("lock_image",)

_USED, _KEPT = 100, 200
# Permissions: consistent reads, writes, changes of the size.
_READ, _WRITE, _RESIZE = 0, 1, 3
# struct flock: type, whence, start, length, process.
_FLOCK = struct.Struct("@hhqqi0q")

# Seconds to wait for a lock: a program that was killed keeps it until its last request has ended, which with
# io_uring is some time after the program itself.
_PATIENCE = 2.0
_PAUSE = 0.02

_log = logging.getLogger(__name__)


def lock_image(fd: int, path: str, *, read_only: bool) -> None:
    """Lock the open file `fd` until it is closed: others may read it, and write it in no case.

    Waits a little for one who goes. Where the file system has no locks, this does nothing.

    :param path: its name, for messages.
    :raises DeviceError: another program uses the file in a way that does not go together with this.
    """
    end = time.monotonic() + _PATIENCE
    try:
        while taken := _lock(fd, read_only):
            if time.monotonic() >= end:
                break
            time.sleep(_PAUSE)
    except OSError as error:
        _log.info("%s: no lock: %s", path, error.strerror)
        return
    if taken:
        writes = _USED + _WRITE in taken
        what = "has it open for writing" if writes else "reads it and does not expect it to change"
        raise DeviceError(f"{path}: another program {what}; end that one, or use --no-lock at your own risk")


def _lock(fd: int, read_only: bool) -> list[int]:
    # Returns the bytes of others that speak against it.
    use = [_READ] if read_only else [_READ, _WRITE]
    try:
        for byte in [_USED + n for n in use] + [_KEPT + n for n in (_WRITE, _RESIZE)]:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return [_KEPT]  # somebody has it all, as fcntl locks of other programs do
        raise
    against = [_KEPT + n for n in use] + [_USED + n for n in (_WRITE, _RESIZE)]
    taken = [byte for byte in against if _taken(fd, byte)]
    if taken:  # two that come together must not keep each other out
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, _USED, 2 * _KEPT, 0))
    return taken


def _taken(fd: int, byte: int) -> bool:
    # Would an exclusive lock be possible? Our own locks do not count, and nothing is locked by asking.
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
