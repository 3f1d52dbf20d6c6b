# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs ``vhost-blk`` as where a container's seccomp filter forbids io_uring."""

import ctypes
import errno
import sys

from vhost.daemon.blk import main

_SETUP = 425  # io_uring_setup, on all machines
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


class _Step(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("yes", ctypes.c_uint8),
        ("no", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_uint16), ("steps", ctypes.POINTER(_Step))]


def forbid() -> None:
    """The kernel answers io_uring_setup with EPERM from here on."""
    steps = (_Step * 4)(
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, _SETUP),  # equal?
        (0x06, 0, 0, _ERRNO | errno.EPERM),
        (0x06, 0, 0, _ALLOW),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(steps), steps)
    for call in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forbid()
    sys.exit(main())
