# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The options that all daemons have, and the numbers that options take."""

import argparse
import os
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from vhost.options import add_quirk, join_values
from vhost.version import __version__

if TYPE_CHECKING:
    from vhost.backend.features import Own

__all__ = ("make_parser", "finish", "number", "size")

_EPILOG = """\
QEMU, after this program has been started with --socket-path={path}:

  qemu-system-x86_64 ... -m 1G -machine q35,memory-backend=mem \\
    -object memory-backend-memfd,id=mem,size=1G,share=on \\
    -chardev socket,id=c0,path={path} \\
    {device}

The guest's memory must be shared (share=on). With --connect={path}, QEMU is the one that listens:

    -chardev socket,id=c0,path={path},server=on

and may be started before this program or after it, and again: this one goes on trying until SIGTERM.

Under systemd, socket activation (LISTEN_FDS), Type=notify and journal priorities work without options.
VHOST_LOG=LOGGER=LEVEL,... sets log levels one by one.

{features}

exit status: 0 after SIGTERM or SIGINT, and when the peer of a connected --fd is gone; 1 failure; 2 usage.
"""

_FEATURES = "@features@"  # where the epilog has their names
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Parser(argparse.ArgumentParser):
    """A parser whose help lists the features that can be chosen; they are loaded when they are needed.

    :param own: the feature bits of the device type.
    """

    own: "Callable[[], Own]"

    def format_help(self) -> str:
        from vhost.backend.features import everything

        listed = textwrap.fill(
            f"features, for --features: {', '.join(everything(self.own()))}",
            106,
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
        return super().format_help().replace(_FEATURES, listed)


def make_parser(
    prog: str,
    description: str,
    *,
    path: str,
    device: str,
    netdev: str = "",
    many: bool = False,
    own: "Callable[[], Own]" = lambda: None,
) -> Parser:
    """A parser with the common options.

    :param path: socket in the QEMU lines of the help, and `device` the QEMU device there.
    :param netdev: the QEMU network device behind `device`, which has the socket then.
    :param many: offer to serve several sockets.
    :param own: what :class:`Parser` has under this name.
    """
    if netdev:
        device = f"-netdev {netdev},chardev=c0 \\\n    -device {device}"
    else:
        device = f"-device {device},chardev=c0"
    parser = Parser(
        prog,
        description=description,
        epilog=_EPILOG.format(path=path, device=device, features=_FEATURES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.own = own
    where = parser.add_argument_group("where to serve (default: the socket that systemd passes)")
    one = where.add_mutually_exclusive_group()
    one.add_argument("-s", "--socket-path", metavar="PATH", help="make a Unix socket there and listen")
    one.add_argument(
        "--connect",
        metavar="PATH",
        help="connect to the Unix socket of a front-end that listens there, and again whenever it has gone",
    )
    one.add_argument(
        "--fd",
        "--socket-fd",
        metavar="FDNUM",
        type=number(0, None),
        help="use this inherited Unix socket, which either listens or is connected",
    )
    parser.set_defaults(socket_count=1)
    if many:
        where.add_argument(
            "-c",
            "--socket-count",
            metavar="N",
            type=number(1, 256),
            default=1,
            help="serve N guests at PATH0, PATH1, ...; with 1, the default, PATH itself is the socket",
        )
    _add_workers(parser)
    common = parser.add_argument_group("common options")
    common.add_argument(
        "--grant-cache",
        metavar="N",
        type=number(0, None),
        default=0,
        help="Xen build: keep up to N granted pages mapped after use, for guests that use their grants "
        "again; a guest cannot take them back meanwhile (default: 0, none)",
    )
    common.add_argument(
        "--features",
        metavar="LIST",
        action="append",
        default=[],
        help="change what front-ends are offered: +NAME offers a feature, -NAME does not, as in "
        "+iommu,-packed; names are below",
    )
    add_quirk(common, "front-ends")
    common.add_argument("-v", "--verbose", action="count", default=0, help="log more")
    common.add_argument("-q", "--quiet", action="count", default=0, help="log less: -q warnings, -qq errors")
    common.add_argument(
        "--print-capabilities", action="store_true", help="print what this program can do as JSON, and exit"
    )
    common.add_argument("--version", action="version", version=f"{prog} {__version__}")
    return parser


def _add_workers(parser: argparse.ArgumentParser) -> None:
    options = parser.add_argument_group("workers, the threads that serve queues")
    wait = options.add_mutually_exclusive_group()
    wait.add_argument(
        "--poll-us",
        metavar="US",
        type=number(0, 1_000_000),
        default=50,
        help="before it sleeps, a worker looks at its queues for this many microseconds, unless that seldom "
        "finds a request; 0: sleep at once, for the least use of the processor (default: %(default)s)",
    )
    wait.add_argument(
        "--poll-always",
        action="store_true",
        help="never sleep: the least latency, for a whole processor per worker",
    )
    options.add_argument(
        "--workers",
        metavar="N",
        type=number(1, 256),
        help="threads of a device, which share its queues evenly (default: one for each queue)",
    )
    options.add_argument(
        "--cpus",
        metavar="LIST",
        type=_cpus,
        default=(),
        help="run the workers on these processors, one each, in turn: 2,4-7 (default: all)",
    )
    options.add_argument(
        "--numa-node",
        metavar="N",
        type=number(0, None),
        help="take the memory of the workers from this node, and without --cpus run them there",
    )


def _cpus(text: str) -> list[int]:
    from vhost.io.cpus import parse_cpus  # loads what help does without

    try:
        return parse_cpus(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers and ranges of processors, as in 2,4-7") from None


def finish(parser: Parser, argv: list[str]) -> argparse.Namespace:
    """Parse `argv`; options that do not fit together end the program with status 2."""
    args = parser.parse_args(join_values(argv))
    args.features = ",".join(args.features)
    if args.features:
        from vhost.backend.features import choose

        try:
            choose(args.features, parser.own())
        except ValueError as error:
            parser.error(f"argument --features: {error}")
    path = args.connect if args.socket_path is None else args.socket_path
    if path is None and args.fd is None and "LISTEN_FDS" not in os.environ:
        parser.error("nowhere to serve: give --socket-path=PATH or --fd=FDNUM, or --connect=PATH")
    if path == "":
        option = "--connect" if args.socket_path is None else "-s/--socket-path"
        parser.error(f"argument {option}: the path is empty")
    if path is None and args.socket_count > 1:
        parser.error("argument -c/--socket-count: several sockets need --socket-path or --connect")
    return args


def number(least: int, most: int | None) -> Callable[[str], int]:
    """The ``type`` of an option that takes an integer from `least` to `most` (None: no limit)."""

    def convert(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            limits = f"at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{value} is not {limits}")
        return value

    convert.__name__ = "number"  # argparse says "invalid number value"
    return convert


def size(text: str) -> int:
    """The ``type`` of an option that takes bytes, with K, M, G or T for powers of 1024: ``512M``."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if unit and unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of bytes, or one with {', '.join(_UNITS)}")
    return int(digits) * _UNITS.get(unit, 1)
