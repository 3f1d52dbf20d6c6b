# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the lab needs on this machine, and what becomes of a test when something is missing.

``VHOST_LAB`` decides: unset, a missing prerequisite skips the test; 1 (or a set ``CI``), it fails the test;
0, no lab test runs at all.
"""

import enum
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ("Missing", "Policy", "console_script", "lacking", "policy", "tool")

# Which Debian package brings a tool; packages.txt lists them all for an installation.
PACKAGES = {
    "apt-config": "apt",
    "apt-get": "apt",
    "apt-cache": "apt",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "e2fsck": "e2fsprogs",
    "ldd": "libc-bin",
    "mkfs.ext4": "e2fsprogs",
    "ip": "iproute2",
    "modprobe": "kmod",
    "nsenter": "util-linux",
    "qemu-storage-daemon": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "setarch": "util-linux",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "unshare": "util-linux",
}


class Missing(Exception):
    """Something the lab needs is not on this machine; the text says what, and how to get it."""


class Policy(enum.Enum):
    """What becomes of a test whose prerequisites are missing."""

    NEVER = "0"
    SKIP = ""
    FAIL = "1"


def policy() -> Policy:
    """The policy that the environment asks for.

    :raises ValueError: ``VHOST_LAB`` is set, but neither 0 nor 1.
    """
    wish = os.environ.get("VHOST_LAB", "")
    if wish == "" and os.environ.get("CI"):
        return Policy.FAIL
    try:
        return Policy(wish)
    except ValueError:
        raise ValueError(f"VHOST_LAB={wish!r}: set it to 1 or 0, or leave it unset") from None


def lacking(reason: str) -> NoReturn:
    """Ends the running test for want of something: skipped, or failed where the lab must be complete."""
    if policy() is Policy.FAIL:
        pytest.fail(f"the lab is incomplete: {reason}", pytrace=False)
    pytest.skip(reason)


def tool(name: str) -> str:
    """The path of a program of the system; administrators' folders count, whoever runs the lab.

    :raises Missing: it is not installed.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    found = shutil.which(name, path=path)
    if found is None:
        raise Missing(f"{name} is not installed; install the Debian package {PACKAGES.get(name, name)}")
    return found


def console_script(name: str) -> str:
    """The path of a console script of the package under test, as the running environment has it.

    :raises Missing: the package is not installed there.
    """
    script = Path(sys.executable).parent / name
    if not script.exists():
        raise Missing(f"{script} does not exist; install the package into this environment (pip install .)")
    return str(script)
