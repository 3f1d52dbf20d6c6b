# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A Debian userland of its own: packages of one suite with all they depend on, in a folder of the cache.

It serves twice: a virtual machine has it as its root, and its programs run on this machine with their own C
library, whatever this machine has installed.
"""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import archive
from tests.lab.prerequisites import Missing

__all__ = ("Userland", "debian")

LIBRARIES = "usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True, slots=True)
class Userland:
    """An unpacked userland of x86-64 in the folder ``root``."""

    root: Path

    def command(self, program: str, *arguments: str | os.PathLike[str]) -> list[str | os.PathLike[str]]:
        """A command line for this machine that runs ``program`` of the userland with its own libraries.

        :param program: path below the root, ``usr/bin/env`` say.
        """
        loader = self.root / "lib64/ld-linux-x86-64.so.2"
        return [loader, "--library-path", self.root / LIBRARIES, self.root / program, *arguments]

    @property
    def python_version(self) -> str:
        """The version of its Python, ``3.11`` say."""
        return (self.root / "usr/bin/python3").readlink().name.removeprefix("python")

    def python(
        self,
        *arguments: str | os.PathLike[str],
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Runs the userland's Python on this machine.

        :returns: its standard output.
        :raises subprocess.CalledProcessError: its status is not 0.
        """
        mine = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        mine |= {"PYTHONHOME": str(self.root / "usr"), **(environment or {})}
        command = self.command(f"usr/bin/python{self.python_version}", *arguments)
        return subprocess.run(
            command, env=mine, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def compile(self, folder: Path) -> None:
        """Compiles the Python modules in ``folder`` for good: a machine does not even look for changes."""
        self.python("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", folder)


def debian(packages: Sequence[str], suite: str, *, accounts: bool = False) -> Userland:
    """The userland of ``packages``, made if it is not in the cache.

    :param accounts: whether it becomes a machine's root, where somebody must be able to log in. The first
        package is then what the folder is named after.
    :raises Missing: this machine's apt cannot provide the packages, or it is no x86-64 Linux.
    """
    if platform.machine() != "x86_64":
        raise Missing(f"programs for x86_64 do not run on {platform.machine()}")
    return Userland(archive.closure(packages, suite, finish_root if accounts else None))


def finish_root(root: Path) -> None:
    # What the packages' scripts would have left behind, as far as the lab needs it.
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    for name in ("dev", "proc", "sys", "run", "tmp", "root"):
        (root / name).mkdir(exist_ok=True)
    if not (root / "usr/bin/sh").exists():
        (root / "usr/bin/sh").symlink_to("dash")
    userland = Userland(root)
    userland.compile(root / f"usr/lib/python{userland.python_version}")
