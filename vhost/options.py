# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Options that programs of several kinds have; what they take is loaded when one is given."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ("add_quirk", "join_values")

# Options whose values may begin with a minus sign.
_SIGNED = ("--features", "--quirk")


def add_quirk(options: Any, peers: str) -> None:
    """Add ``--quirk`` to a parser or a group; its values are joined by commas, as ``quirks=`` takes them.

    :param peers: the programs that have quirks, in words.
    """
    options.add_argument(
        "--quirk",
        metavar="NAME",
        action=_Quirk,
        dest="quirks",
        default="",
        help=f"go along with {peers} that differ from the specification in this, or, with -NAME, do not; "
        "may be repeated; 'help' lists them",
    )


class _Quirk(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: str | Sequence[Any] | None,
        option: str | None = None,
    ) -> None:
        from vhost.protocol.quirks import Quirks, describe

        if value == "help":
            sys.stdout.write(describe() + "\n")
            parser.exit()
        chosen = f"{namespace.quirks},{value}"
        try:
            Quirks.choose(chosen)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        namespace.quirks = chosen


def join_values(words: Iterable[str]) -> list[str]:
    """``--features -packed`` as ``--features=-packed``: argparse would take the value for an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in _SIGNED and word.startswith("-") and not word.startswith("--"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined
