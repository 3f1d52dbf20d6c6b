# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Loading a Xen library by its soname, and turning its failures into exceptions.

Knows no function of any library; each binding declares its own.
"""

import ctypes
import errno
import os
from typing import Final

__all__ = ("PACKAGES", "load", "failure")

#: Where the libraries come from, by soname.
PACKAGES: Final = {
    "libxengnttab.so.1": "libxengnttab1 (Debian, Ubuntu) or xen-libs (Fedora)",
    "libxenforeignmemory.so.1": "libxenforeignmemory1 (Debian, Ubuntu) or xen-libs (Fedora)",
}


def load(soname: str) -> ctypes.CDLL:
    """Load a library as the dynamic linker finds it.

    :raises FileNotFoundError: it cannot be loaded; the message says which package has it.
    """
    try:
        return ctypes.CDLL(soname, use_errno=True)
    except OSError as error:
        raise FileNotFoundError(
            errno.ENOENT,
            f"cannot load the Xen library ({error}); it is in the package {PACKAGES[soname]}",
            soname,
        ) from error


def failure(what: str) -> OSError:
    """The exception for a library call that has just failed in this thread.

    :param what: what was tried, in words.
    """
    # A library that fails without saying why still failed.
    code = ctypes.get_errno() or errno.EIO
    return OSError(code, f"{what}: {os.strerror(code)}")
