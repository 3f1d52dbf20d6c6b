# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``vhost-blk``: a disk on a raw image or a block device."""

import argparse
import sys
from typing import TYPE_CHECKING

from vhost.daemon.args import make_parser, number
from vhost.daemon.main import run

if TYPE_CHECKING:
    from vhost.devices.device import Device

__all__ = ("main",)


def main() -> int:
    """The program; returns its exit status."""
    parser = make_parser(
        "vhost-blk",
        "Serve a virtio block device.",
        path="/tmp/blk.sock",
        device="vhost-user-blk-pci,num-queues=1",  # QEMU would ask for one queue per processor
    )
    options = parser.add_argument_group("device options")
    options.add_argument(
        "-b",
        "--blk-file",
        metavar="IMAGE",
        required=True,
        help="the disk: a raw image or a block device; make an image with 'truncate --size=1G IMAGE'",
    )
    options.add_argument("-r", "--read-only", action="store_true", help="open IMAGE for reading only")
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


def _devices(args: argparse.Namespace) -> "list[Device]":
    from vhost.devices.blk import Blk

    return [
        Blk(args.blk_file, read_only=args.read_only, serial=args.serial, num_queues=args.num_queues),
    ]


if __name__ == "__main__":
    sys.exit(main())
