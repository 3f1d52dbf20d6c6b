# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a guest of Xen boots: one program, ``xen_guest/*.c``, which drives a queue with memory of its own."""

import subprocess
import tempfile
from pathlib import Path

from tests.lab.initramfs import Initramfs
from tests.lab.kernel import Kernel
from tests.lab.prerequisites import Missing, tool

__all__ = ("write_guest",)

SOURCES = Path(__file__).with_name("xen_guest")
# Granting pages and event channels to programs; xenstore and the console are built in.
MODULES = ("xen-gntalloc", "xen-evtchn")


def write_guest(kernel: Kernel, target: Path) -> None:
    """Writes the guest's root to ``target``; ``xen_guest/guest.h`` says what the program does.

    :raises Missing: there is no compiler or no static C library, or the kernel has no such module.
    """
    root = Initramfs()
    for folder in ("dev", "proc"):
        root.folder(f"/{folder}")
    root.device("/dev/console", 5, 1)  # the kernel opens it before the first program runs
    root.file("/init", program(), 0o755)
    modules = kernel.modules(MODULES)
    for name, content in modules.items():
        root.file(f"/modules/{name}.ko", content)
    root.file("/modules/order", "".join(f"{name}\n" for name in modules).encode())
    root.write(target)


def program() -> bytes:
    # Static, since there is nothing else in the guest.
    compiler = tool("gcc")
    with tempfile.TemporaryDirectory(prefix="vhost-xen-guest-") as folder:
        made = Path(folder) / "init"
        options = ["-static", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
        command = [compiler, *options, "-o", made, *sorted(SOURCES.glob("*.c"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "cannot find -lc" in done.stderr:
            raise Missing("there is no static C library; install the Debian package libc6-dev")
        if done.returncode:
            raise RuntimeError(f"the guest's program does not compile:\n{done.stderr}")
        return made.read_bytes()
