# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The program ``vhost``: its commands, each of which is loaded only when it is used."""

import argparse
import importlib
import os
import sys
from typing import Any

from vhost.options import join_values

from . import bench_args

__all__ = ("main",)


def main() -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(
        "vhost",
        description="Tools for vhost-user devices. The devices are other programs: "
        "vhost-rng, vhost-blk, vhost-net.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show version and build, and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="show on this machine, without a virtual machine, that devices work",
        description=(
            "Start vhost-rng and vhost-blk, connect to them as a virtual machine would, show the "
            "negotiation, move data, check all of it. Needs no privileges and no network, leaves nothing."
        ),
        allow_abbrev=False,
    )
    demo.add_argument(
        "--size",
        metavar="MIB",
        type=_size,
        default=256,
        help="MiB to write to the disk and read back (default: %(default)s)",
    )
    demo.set_defaults(command="vhost.cli.demo")
    bench_args.add(commands)

    args = parser.parse_args(join_values(sys.argv[1:]))
    try:
        if "command" not in args:
            parser.print_help()
            return 0
        status: int = importlib.import_module(args.command).run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has had enough; the interpreter must not try to write the rest of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ImportError as error:
        print(f"vhost: this installation is incomplete: {error}", file=sys.stderr)
        return 1
    return status


def _size(text: str) -> int:
    size = int(text)
    if not 1 <= size <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{size} is not from 1 to {1 << 20}")
    return size


class _Version(argparse.Action):
    # The build is known only to the C core and the memory implementation: loaded when asked for.
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from vhost.version import describe

        try:
            print(describe())
        except ImportError as error:
            parser.exit(1, f"vhost: this installation is incomplete: {error}\n")
        parser.exit()
