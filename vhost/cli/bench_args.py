# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What ``vhost bench`` can be told; nothing that it needs is loaded here."""

import argparse
from typing import Any, Final

from vhost.options import add_quirk

__all__ = ("add",)

_EPILOG: Final = """\
A peer is one of
  NAME=COMMAND     started here; @SOCKET@ in the command is the path to listen on, @IMAGE@ that of a disk
                   of 256 MiB made for it, in memory if there is room
  NAME=@PATH       running already, behind the socket PATH; it stays where it is
  NAME             a well-known one: vhost-blk, vhost-blk-null, vhost-blk-memory, qemu-storage-daemon,
                   vhost-blk-null-spin, qemu-storage-daemon-io_uring, qemu-storage-daemon-null for blk;
                   vhost-rng for rng; and those of the file given with --peers
NAME:spin=COMMAND is one that never sleeps: it is stopped outside its turns. NAME:verify=... serves a disk
whose sectors begin with their numbers (64-bit, little-endian): some data is compared; so it is with @IMAGE@.
NAME:fill=... serves an empty disk, to which these numbers are written first.
NAME:packed, with or without =COMMAND, is loaded with --packed alone, to compare a device with itself; so are
NAME:in-order, NAME:indirect, NAME:inflight, NAME:dirty-log, NAME:python, and several of them together.

examples:
  vhost bench
      what a request costs in vhost-blk, whatever the disk, and in vhost-rng: in ten seconds
  vhost bench blk vhost-blk qemu-storage-daemon --svg blk.svg
      both on images in memory, in turns; ratios are to the first
  vhost bench blk vhost-blk mine='./mine --socket @SOCKET@ --disk @IMAGE@' --depth 128 --cores 1
      on one processor, which gives the steadiest figures
  vhost bench blk vhost-blk-null vhost-blk-null:packed vhost-blk-null:inflight --cores 1
      what a packed ring and an inflight region cost
  vhost bench control vhost-rng other='./other @SOCKET@' --cores 1
      what a handshake, a question, and a region more cost
  vhost bench rng vhost-rng other=@/run/rng.sock --size 64 --json rng.json

The exit status is 1 if a peer failed, returned a wrong request (status, length, data), or lost an interrupt;
what the others did is shown all the same.
"""


def add(commands: Any) -> None:
    """Add the command to the subparsers of ``vhost``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure and compare devices under load",
        description=(
            "Start backends, keep requests in flight in each of them in turn (A B C, C B A, ...), check all\n"
            "of them, and show medians with quartiles, CPU time of the backend, latency, ratios to the first."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    option = parser.add_argument
    option(
        "device",
        metavar="DEVICE",
        nargs="?",
        help="blk, rng or net; control: messages; without: blk, then rng",
    )
    option("peers", metavar="PEER", nargs="*", help="what to compare; without: our own device")
    option(
        "--peers",
        metavar="FILE",
        dest="peer_file",
        help='peers by name, in TOML: for each device a table of NAME = "COMMAND"',
    )
    option("--depth", metavar="N,...", help="requests in flight (default: 1,32,128; without peers 1,128)")
    option(
        "--mode",
        metavar="MODE,...",
        help="event: it sleeps until called; poll: it spins (default: both; without peers event)",
    )
    option("--rounds", metavar="N", type=int, help="turns of each peer (default: 9; without peers 3)")
    option("--time", metavar="S", type=float, default=0.4, help="seconds of a turn (default: %(default)s)")
    option(
        "--cores",
        metavar="N",
        type=int,
        choices=(1, 2),
        help="1: server and driver on one processor, event; 2: on one each, poll",
    )
    option("--server-cpu", metavar="N", type=int, help="run what is started on this processor")
    option("--driver-cpu", metavar="N", type=int, help="run the load on this processor")
    option("--size", metavar="BYTES", type=int, help="data of a request (default: 4096 for blk, 64 else)")
    access = parser.add_mutually_exclusive_group()
    for word, text in (
        ("random", "blk: random reads (default)"),
        ("read", "blk: sequential reads"),
        ("write", "blk: sequential writes"),
        ("send", "net: frames to the device (default)"),
        ("receive", "net: frames from the device"),
    ):
        access.add_argument(f"--{word}", dest="access", action="store_const", const=word, help=text)
    option("--queue-size", metavar="N", type=int, help="entries of the ring (default: 128, or as needed)")
    option(
        "--regions",
        metavar="N",
        type=int,
        default=1,
        help="regions of memory, buffers spread over them",
    )
    option("--indirect", action="store_true", help="use indirect descriptors if they are offered")
    option("--packed", action="store_true", help="use packed rings")
    option("--in-order", action="store_true", help="have requests returned in order (IN_ORDER)")
    option("--inflight", action="store_true", help="have what is in flight recorded in an inflight region")
    option("--dirty-log", action="store_true", help="have written pages marked in a dirty log")
    option("--python", action="store_true", help="drive by vhost.connect() from Python, not from C")
    option("--no-event-idx", action="store_true", help="do without event indexes")
    add_quirk(parser, "backends")
    option("--json", metavar="FILE", help="write every round to FILE")
    option("--svg", metavar="FILE", help="draw the figures into FILE")
    parser.set_defaults(command="vhost.cli.bench")
