# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Loading a Xen library by its soname, and turning its failures into exceptions.

Knows no function of any library; each binding declares its own.
"""

import ctypes
import errno
import os
from collections.abc import Mapping
from typing import Any

__all__ = ("Prototype", "package", "load", "declare", "failure")

#: A function's result and arguments, as ctypes has them.
Prototype = tuple[Any, tuple[Any, ...]]


def package(soname: str) -> str:
    """Where a Xen library comes from, in words."""
    name, _, version = soname.partition(".so.")
    # The two whose ABI is that of one Xen version come together.
    debian = "libxenmisc" if name in ("libxenctrl", "libxenguest") else name
    return f"{debian}{version} (Debian, Ubuntu) or xen-libs (Fedora)"


def load(soname: str) -> ctypes.CDLL:
    """Load a library as the dynamic linker finds it.

    :raises FileNotFoundError: it cannot be loaded; the message says which package has it.
    """
    try:
        return ctypes.CDLL(soname, use_errno=True)
    except OSError as error:
        raise FileNotFoundError(
            errno.ENOENT,
            f"cannot load the Xen library ({error}); it is in the package {package(soname)}",
            soname,
        ) from error


def declare(soname: str, prefix: str, functions: Mapping[str, Prototype]) -> ctypes.CDLL:
    """Load a library and give its functions their types.

    :param prefix: what all their names begin with.
    :raises FileNotFoundError: it cannot be loaded.
    :raises OSError: ENOSYS: it is too old and lacks one of the functions.
    """
    lib = load(soname)
    for name, (result, arguments) in functions.items():
        try:
            function = getattr(lib, prefix + name)
        except AttributeError as error:
            message = f"the Xen library {soname} is too old: it has no function {prefix}{name}"
            raise OSError(errno.ENOSYS, message, soname) from error
        function.restype = result
        function.argtypes = arguments
    return lib


def failure(what: str) -> OSError:
    """The exception for a library call that has just failed in this thread.

    :param what: what was tried, in words.
    """
    # A library that fails without saying why still failed.
    code = ctypes.get_errno() or errno.EIO
    return OSError(code, f"{what}: {os.strerror(code)}")
