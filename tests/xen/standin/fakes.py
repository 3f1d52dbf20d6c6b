# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Stand-ins of the Xen libraries: built from the C files here, loaded before vhost.mem is.

The bindings find them by soname like the real ones: in this process because a library with that soname is
loaded already, in processes it starts through LD_LIBRARY_PATH.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Importing vhost.mem loads the Xen libraries, and so comes after load().
    pass

SOURCES = Path(__file__).parent
LIBRARIES = ("xengnttab", "xenforeignmemory")


class Call(ctypes.Structure):
    """One successful map or unmap of grants, see tests/xen/standin/xengnttab.c."""

    _fields_ = [
        ("ref", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("prot", ctypes.c_int32),
        ("watched", ctypes.c_uint32),
    ]


class FakeGnttab(ctypes.Structure):
    """``struct fake_gnttab``, see tests/xen/standin/xengnttab.c for what each field means."""

    _fields_ = [
        ("memory", ctypes.c_int32),
        ("granted", ctypes.c_uint32),
        ("read_only", ctypes.c_uint32),
        ("domid", ctypes.c_int32),
        ("fail_errno", ctypes.c_int32),
        ("fail_times", ctypes.c_uint32),
        ("fail_skip", ctypes.c_uint32),
        ("opened", ctypes.c_uint32),
        ("closed", ctypes.c_uint32),
        ("maps", ctypes.c_uint32),
        ("tries", ctypes.c_uint32),
        ("unmaps", ctypes.c_uint32),
        ("pages", ctypes.c_uint32),
        ("prot", ctypes.c_int32),
        ("count", ctypes.c_uint32),
        ("bad", ctypes.c_uint32),
        ("calls", ctypes.c_uint32),
        ("watch", ctypes.c_int64),
        ("call", Call * 256),
        ("notified", ctypes.c_uint32),
        ("notified_port", ctypes.c_uint32),
        ("copies", ctypes.c_uint32),
        ("segments", ctypes.c_uint32),
        ("bytes", ctypes.c_uint64),
        ("copy_errno", ctypes.c_int32),
        ("copy_times", ctypes.c_uint32),
        ("bad_status", ctypes.c_int32),
        ("bad_segments", ctypes.c_uint32),
        ("bad_skip", ctypes.c_uint32),
    ]


class FakeForeign(ctypes.Structure):
    """``struct fake_foreign``, see tests/xen/standin/xenforeignmemory.c for what each field means."""

    _fields_ = [
        ("memory", ctypes.c_int32),
        ("domid", ctypes.c_int32),
        ("fail_errno", ctypes.c_int32),
        ("fail_times", ctypes.c_uint32),
        ("base", ctypes.c_int64),
        ("bad_frame", ctypes.c_uint64),
        ("bad_count", ctypes.c_uint64),
        ("bad_errno", ctypes.c_int32),
        ("bad_times", ctypes.c_uint32),
        ("opened", ctypes.c_uint32),
        ("closed", ctypes.c_uint32),
        ("maps", ctypes.c_uint32),
        ("unmaps", ctypes.c_uint32),
        ("pages", ctypes.c_uint64),
        ("prot", ctypes.c_int32),
        ("flags", ctypes.c_int32),
        ("restricted", ctypes.c_int32),
        ("only_restricted", ctypes.c_uint32),
        ("resource_frames", ctypes.c_uint32),
        ("resources", ctypes.c_uint32),
    ]


def build(folder: Path) -> None:
    """Compile the stand-ins into a folder, under the real libraries' names."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise RuntimeError("the tests of the Xen build need a C compiler (cc, or CC in the environment)")
    for name in LIBRARIES:
        soname = f"lib{name}.so.1"
        command = [compiler, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        command += [f"-Wl,-soname,{soname}", "-o", str(folder / soname), str(SOURCES / f"{name}.c")]
        subprocess.run(command, check=True)


def load(folder: Path) -> None:
    """Make the libraries in a folder the ones that this process and its children find."""
    for name in LIBRARIES:
        ctypes.CDLL(str(folder / f"lib{name}.so.1"))
    paths = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    os.environ["LD_LIBRARY_PATH"] = ":".join(paths)


def gnttab() -> FakeGnttab:
    """What the stand-in for libxengnttab counts and obeys."""
    return FakeGnttab.in_dll(ctypes.CDLL("libxengnttab.so.1"), "fake_gnttab")


def foreign() -> FakeForeign:
    """What the stand-in for libxenforeignmemory counts and obeys."""
    return FakeForeign.in_dll(ctypes.CDLL("libxenforeignmemory.so.1"), "fake_foreign")
