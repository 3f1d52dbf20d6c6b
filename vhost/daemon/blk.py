# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``vhost-blk``: a disk on a raw image or a block device."""

import argparse
import sys
from typing import TYPE_CHECKING

from vhost.daemon.args import make_parser, number, size
from vhost.daemon.main import run

if TYPE_CHECKING:
    from vhost.backend.features import Own
    from vhost.devices.device import Device
    from vhost.devices.disk import Disk

__all__ = ("main",)


def main() -> int:
    """The program; returns its exit status."""
    parser = make_parser(
        "vhost-blk",
        "Serve a virtio block device.",
        path="/tmp/blk.sock",
        device="vhost-user-blk-pci,num-queues=1",  # QEMU would ask for one queue per processor
        own=_features,
    )
    options = parser.add_argument_group("device options")
    disk = options.add_mutually_exclusive_group(required=True)
    disk.add_argument(
        "-b",
        "--blk-file",
        metavar="IMAGE",
        help="the disk: a raw image or a block device; make an image with 'truncate --size=1G IMAGE'",
    )
    disk.add_argument(
        "--memory",
        metavar="SIZE",
        type=size,
        help="a disk of SIZE in memory, gone with this program: 512M, 1G",
    )
    disk.add_argument(
        "--null",
        metavar="SIZE",
        type=size,
        help="a disk of SIZE that keeps nothing and reads as whatever was in the buffer, for benchmarks",
    )
    options.add_argument(
        "-r", "--read-only", action="store_true", help="refuse writes; open IMAGE for reading only"
    )
    options.add_argument(
        "--io",
        choices=("auto", "uring", "map", "sync"),
        default="auto",
        help="how IMAGE is read and written: by io_uring, by a mapping (for file systems in memory), "
        "by system calls one after the other, or, the default, by the first that fits IMAGE and kernel",
    )
    options.add_argument(
        "--direct",
        action="store_true",
        help="read and write IMAGE past the page cache of this host (O_DIRECT); not together with --io=map",
    )
    options.add_argument(
        "--no-lock",
        action="store_true",
        help="open IMAGE even if another program writes it, or reads it and does not expect it to change",
    )
    options.add_argument(
        "--serial", metavar="TEXT", default="", help="serial number that the guest sees, up to 20 characters"
    )
    options.add_argument(
        "--num-queues",
        metavar="N",
        type=number(1, 256),
        default=1,
        help="request queues, with a thread each; and num-queues=N for QEMU's -device (default: %(default)s)",
    )
    return run(parser, {"type": "block", "features": ["read-only", "blk-file"]}, _devices)


def _features() -> "Own":
    from vhost.virtio.blk import BlkFeature

    return BlkFeature


def _devices(args: argparse.Namespace) -> "list[Device]":
    from vhost.devices.blk import Blk

    return [Blk(_disk(args), serial=args.serial, num_queues=args.num_queues)]


def _disk(args: argparse.Namespace) -> "Disk":
    read_only = args.read_only
    if args.null is not None:
        from vhost.devices.disk import NullDisk

        return NullDisk(args.null, read_only=read_only)
    if args.memory is not None:
        from vhost.devices.memory_disk import MemoryDisk

        return MemoryDisk(args.memory, read_only=read_only)
    from vhost.devices.image import Image

    return Image(args.blk_file, read_only=read_only, io=args.io, direct=args.direct, lock=not args.no_lock)


if __name__ == "__main__":
    sys.exit(main())
