# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The package on a machine without Xen: it imports, and says what is missing when it is used."""

import ctypes
import ctypes.util
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyxenctrl
from pyxenctrl.library import declare, package

without_libraries = pytest.mark.skipif(
    ctypes.util.find_library("xengnttab") is not None, reason="the Xen libraries are here"
)
without_device = pytest.mark.skipif(Path("/dev/xen/privcmd").exists(), reason="this is a Xen domain")


def python(code: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    env["PYTHONPATH"] = str(Path(pyxenctrl.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_importing_loads_no_library() -> None:
    done = python(
        "import pyxenctrl\n"
        "print(*(name for name in open('/proc/self/maps').read().split() if 'libxen' in name), 'done')"
    )
    assert done.stdout == "done\n"


@without_libraries
@pytest.mark.parametrize(
    ("handle", "library", "package"),
    [
        ("GrantTable", "libxengnttab.so.1", "libxengnttab1"),
        ("GrantShare", "libxengnttab.so.1", "libxengnttab1"),
        ("ForeignMemory", "libxenforeignmemory.so.1", "libxenforeignmemory1"),
        ("EventChannels", "libxenevtchn.so.1", "libxenevtchn1"),
        ("DeviceModel", "libxendevicemodel.so.1", "libxendevicemodel1"),
        ("Store", "libxenstore.so.4", "libxenstore4"),
    ],
)
def test_opening_says_which_library_is_missing(handle: str, library: str, package: str) -> None:
    done = python(f"import pyxenctrl\npyxenctrl.{handle}()")
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("FileNotFoundError: [Errno 2] cannot load the Xen library")
    assert library in message
    assert package in message


@without_device
def test_opening_says_which_device_is_missing() -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot open /dev/xen/privcmd .*module xen-privcmd loaded"):
        pyxenctrl.Privcmd()


def test_where_libraries_come_from() -> None:
    assert package("libxendevicemodel.so.1") == "libxendevicemodel1 (Debian, Ubuntu) or xen-libs (Fedora)"
    assert package("libxenguest.so.4.17").startswith("libxenmisc4.17 ")


def test_a_library_that_lacks_a_function_is_too_old() -> None:
    # Not a library of Xen, but one that is everywhere.
    lib = declare("libc.so.6", "str", {"len": (ctypes.c_size_t, (ctypes.c_char_p,))})
    assert lib.strlen(b"four") == 4
    with pytest.raises(OSError, match=r"libc\.so\.6 is too old: it has no function strange") as caught:
        declare("libc.so.6", "str", {"ange": (None, ())})
    assert caught.value.errno == errno.ENOSYS


def test_the_package_is_typed_and_exports_what_it_says() -> None:
    assert (Path(pyxenctrl.__file__).parent / "py.typed").exists()
    assert all(hasattr(pyxenctrl, name) for name in pyxenctrl.__all__)
