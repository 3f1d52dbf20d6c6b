# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a guest boots: busybox, a file system's tool, the drivers, and the first program ``guest-init.sh``."""

from collections.abc import Sequence
from pathlib import Path

from tests.lab.initramfs import Initramfs
from tests.lab.kernel import Kernel
from tests.lab.prerequisites import tool

__all__ = ("write_root",)

# ext4 wants a checksum that newer kernels have built in; modprobe knows.
MODULES = ("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_mem", "ext4")
INIT = Path(__file__).with_name("guest-init.sh")


def write_root(
    kernel: Kernel, target: Path, modules: Sequence[str] = MODULES, busybox: Path | None = None
) -> None:
    """Writes the guest's root to ``target``. All of it is files of this machine and of packages.

    :param modules: are loaded, and what they need before them.
    :param busybox: for another processor than this machine's, statically linked: all programs there are.
    :raises Missing: a part is not on this machine.
    """
    root = Initramfs()
    for folder in ("dev", "proc", "sys", "tmp", "mnt"):
        root.folder(f"/{folder}")
    root.device("/dev/console", 5, 1)  # the kernel opens it before the first program runs
    root.file("/init", INIT.read_bytes(), 0o755)
    if busybox is None:
        root.program("/bin/busybox", Path(tool("busybox")))
        root.program("/sbin/mkfs.ext4", Path(tool("mkfs.ext4")))
    else:
        root.file("/bin/busybox", busybox.read_bytes(), 0o755)
    files = kernel.modules(modules)
    for name, content in files.items():
        root.file(f"/modules/{name}.ko", content)
    root.file("/modules/order", "".join(f"{name}\n" for name in files).encode())
    root.write(target)
