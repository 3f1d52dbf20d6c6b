# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The package on a machine without Xen: it imports, and says what is missing when it is used."""

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyxenctrl

without_libraries = pytest.mark.skipif(
    ctypes.util.find_library("xengnttab") is not None, reason="the Xen libraries are here"
)


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
        ("ForeignMemory", "libxenforeignmemory.so.1", "libxenforeignmemory1"),
    ],
)
def test_opening_says_which_library_is_missing(handle: str, library: str, package: str) -> None:
    done = python(f"import pyxenctrl\npyxenctrl.{handle}()")
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("FileNotFoundError: [Errno 2] cannot load the Xen library")
    assert library in message
    assert package in message


def test_the_package_is_typed_and_exports_what_it_says() -> None:
    assert (Path(pyxenctrl.__file__).parent / "py.typed").exists()
    assert all(hasattr(pyxenctrl, name) for name in pyxenctrl.__all__)
