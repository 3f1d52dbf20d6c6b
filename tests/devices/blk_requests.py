# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Requests to a block device, and disks of every kind to send them to."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from vhost._core import ffi
from vhost.devices.blk import Blk
from vhost.devices.blk_path import UringPath
from vhost.devices.disk import Disk
from vhost.devices.image import Image
from vhost.devices.memory_disk import MemoryDisk
from vhost.virtio.blk import BlkStatus as Status

SECTORS = 4096
SIZE = SECTORS * 512
#: How an image is read and written, and the disk that has none.
IMAGES = "sync", "uring", "map"
KINDS = (*IMAGES, "sync direct", "uring direct", "memory")


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


def status(answer: tuple[int, bytes]) -> Status:
    used, data = answer
    assert used == len(data)
    return Status(data[-1])


def need_uring() -> None:
    """Skips where the kernel has no io_uring for us; the fallback has a test of its own."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    try:
        UringPath(ffi.new("struct vh_blk *", {"fd": fd}), 1).close()
    except OSError as error:
        pytest.skip(f"no io_uring here: {error.strerror}")
    finally:
        os.close(fd)


def need_direct(path: Path) -> None:
    """Skips where the file system has no O_DIRECT, or has it only for blocks larger than a sector."""
    try:
        disk = Image(path, direct=True)
    except OSError as error:
        pytest.skip(f"no O_DIRECT here: {error.strerror}")
    disk.close()
    if disk.block_size > 512:
        pytest.skip(f"O_DIRECT takes blocks of {disk.block_size} bytes here")


@dataclass
class Backed:
    """A disk of one kind with known contents."""

    kind: str
    path: Path
    initial: bytes

    def disk(self, *, read_only: bool = False) -> Disk:
        if self.kind == "memory":
            disk = MemoryDisk(len(self.initial), read_only=read_only)
            ffi.memmove(disk.memory, self.initial, len(self.initial))
            self._memory = disk
            return disk
        io, _, direct = self.kind.partition(" ")
        if io == "uring":
            need_uring()
        if direct:
            need_direct(self.path)
        return Image(self.path, read_only=read_only, io=io, direct=bool(direct))  # type: ignore[arg-type]

    def device(self, *, read_only: bool = False, serial: str = "", features: int = ~0) -> Blk:
        device = Blk(self.disk(read_only=read_only), serial=serial)
        device.negotiated(features)
        return device

    def contents(self) -> bytes:
        """What is on the disk now; a device of it must be open."""
        if self.kind == "memory":
            return bytes(ffi.buffer(self._memory.memory, len(self.initial)))
        return self.path.read_bytes()


def make(kind: str, folder: Path) -> Backed:
    """A disk of SECTORS sectors, each different from its neighbours."""
    initial = b"".join(struct.pack("<Q", number) * 64 for number in range(SECTORS))
    path = folder / "disk.img"
    path.write_bytes(initial)
    return Backed(kind, path, initial)
