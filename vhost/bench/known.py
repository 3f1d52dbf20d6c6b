# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Backends that need no command on the command line, and the disk that is made for those that serve one."""

import array
import os
import sys
from pathlib import Path
from typing import Final

__all__ = ("COMMANDS", "FLAGS", "DEFAULT", "SOCKET", "IMAGE", "IMAGE_SIZE", "write_image", "image_folder")

#: Where the path of the socket goes in a command.
SOCKET: Final = "@SOCKET@"
#: Where the path of a disk image goes.
IMAGE: Final = "@IMAGE@"
#: Bytes of that image; each peer has its own.
IMAGE_SIZE: Final = 256 << 20
_SECTOR: Final = 512
_STEP: Final = 1 << 20
_SHM: Final = Path("/dev/shm")


def _ours(name: str, *options: str) -> tuple[str, ...]:
    # Of this very installation, also when it is a source tree.
    root = Path(__file__).parents[2]
    path = [] if root.name in ("site-packages", "dist-packages") else ["env", f"PYTHONPATH={root}"]
    return (*path, sys.executable, "-P", "-m", f"vhost.daemon.{name}", f"--socket-path={SOCKET}", *options)


def _storage_daemon(*blockdev: str) -> tuple[str, ...]:
    export = f"vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={SOCKET},writable=on"
    return "qemu-storage-daemon", "--blockdev", ",".join((*blockdev, "node-name=n")), "--export", export


#: Well-known backends of each device: the default ones come first.
COMMANDS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "blk": {
        "vhost-blk": _ours("blk", "--quiet", f"--blk-file={IMAGE}"),
        "vhost-blk-null": _ours("blk", "--quiet", "--null=1G"),
        "vhost-blk-null-spin": _ours("blk", "--quiet", "--null=1G", "--poll-always"),
        "vhost-blk-memory": _ours("blk", "--quiet", "--memory=256M"),
        "qemu-storage-daemon": _storage_daemon("driver=file", f"filename={IMAGE}"),
        "qemu-storage-daemon-io_uring": _storage_daemon("driver=file", "aio=io_uring", f"filename={IMAGE}"),
        "qemu-storage-daemon-null": _storage_daemon("driver=null-co", f"size={1 << 30}"),
    },
    "rng": {"vhost-rng": _ours("rng", "--quiet")},
    "net": {},
}
# Messages are the same whatever the device.
COMMANDS["control"] = {**COMMANDS["blk"], **COMMANDS["rng"]}
#: What those of them are that do not sleep, or keep what is written: flags of a peer.
FLAGS: Final = {"vhost-blk-null-spin": ("spin",), "vhost-blk-memory": ("fill",)}
#: Whom a benchmark without peers is about.
DEFAULT: Final = {"blk": "vhost-blk-null", "rng": "vhost-rng", "control": "vhost-rng"}


def image_folder() -> Path | None:
    """A folder in memory with room for images, None if there is none."""
    try:
        room = os.statvfs(_SHM)
    except OSError:
        return None
    return _SHM if room.f_bavail * room.f_frsize > 4 * IMAGE_SIZE and os.access(_SHM, os.W_OK) else None


def write_image(path: Path) -> None:
    """Write a disk in which each sector begins with its own number.

    :raises OSError: there is no room for it.
    """
    step = array.array("Q", bytes(_STEP))
    words, sectors = _SECTOR // 8, _STEP // _SECTOR
    with path.open("xb") as file:
        for first in range(0, IMAGE_SIZE // _SECTOR, sectors):
            step[::words] = array.array("Q", range(first, first + sectors))
            if sys.byteorder == "big":
                step.byteswap()
            file.write(step)
            if sys.byteorder == "big":
                step.byteswap()
