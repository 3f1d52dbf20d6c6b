# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``vhost-rng``: a random number generator."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from vhost.daemon.args import make_parser, number
from vhost.daemon.main import run
from vhost.errors import DeviceError

if TYPE_CHECKING:
    from vhost.devices.device import Device

__all__ = ("main",)


def main() -> int:
    """The program; returns its exit status."""
    parser = make_parser(
        "vhost-rng",
        "Serve a virtio random number generator.",
        path="/tmp/rng.sock",
        device="vhost-user-rng-pci",
        many=True,
    )
    options = parser.add_argument_group("device options")
    options.add_argument(
        "-m",
        "--max-bytes",
        metavar="N",
        type=number(1, None),
        help="give at most N bytes per period, split evenly among the sockets (default: no limit)",
    )
    options.add_argument(
        "-p",
        "--period",
        metavar="MS",
        type=number(1, 65536),
        default=65536,
        help="length of a period in milliseconds, 1 to 65536 (default: %(default)s)",
    )
    source = options.add_mutually_exclusive_group()
    source.add_argument(
        "-f",
        "--rng-source",
        metavar="FILE",
        help="read the bytes from FILE (default: the system's, as from /dev/urandom)",
    )
    source.add_argument(
        "--seed",
        metavar="N",
        type=int,
        help="give the same bytes for the same N, for tests; socket I has seed N+I",
    )
    return run(parser, {"type": "rng", "features": []}, _devices)


def _devices(args: argparse.Namespace) -> "list[Device]":
    from vhost.devices.entropy import FileSource, SeededSource, Source
    from vhost.devices.rng import Rng

    count = args.socket_count
    sources: list[Source]
    if args.rng_source is not None:
        sources = [FileSource(args.rng_source)] * count  # one open file: no byte goes to two guests
    elif args.seed is None:
        sources = [os.getrandom] * count
    else:
        sources = [SeededSource(args.seed + index) for index in range(count)]
    quota = None if args.max_bytes is None else args.max_bytes // count
    if quota == 0:
        raise DeviceError(f"--max-bytes={args.max_bytes} leaves nothing for some of {count} sockets")
    return [Rng(source, max_bytes=quota, period_ms=args.period) for source in sources]


if __name__ == "__main__":
    sys.exit(main())
