# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Requests per second of vhost-blk on granted memory, by the way in which it reaches the memory.

``python -m tests.xen.real.bench_grants`` in a control domain prints tables, and writes the figures as JSON.
The ways take turns within each round, so that other work on the machine hits all of them; ratios are of one
round, and figures are medians of the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyxenctrl.control import Control
from pyxenctrl.domain import DomainKind

from .breakeven import FIRST_REF, both_directions, break_even, own_time
from .frontend import Frontend
from .grant_tables import piece_tables, request_tables
from .load import PAGES, RING_PAGES, Load, Session, write_image
from .measured import COUNTED, MODES, Served, environment, served
from .puppet import Puppet
from .syscalls import counting

__all__ = ("program",)

BLOCKS = 8192
DEPTHS = (1, 32, 128)


class Bench:
    """The devices, one for each mode, and the driver that uses them in turn."""

    def __init__(self, stack: ExitStack) -> None:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grants-")))
        write_image(work / "image", BLOCKS)
        image = os.open(work / "image", os.O_RDONLY)
        stack.callback(os.close, image)
        self._control = stack.enter_context(Control())
        pages = PAGES + len(MODES) * RING_PAGES
        self.puppet = stack.enter_context(Puppet(self._control, DomainKind.HVM, pages))
        load = Load(self.puppet, image, BLOCKS)
        stack.callback(load.close)
        self._sessions: dict[Served, Session] = {}
        for number, mode in enumerate(MODES):
            server = stack.enter_context(served(mode, work / "image", work))
            frontend = stack.enter_context(Frontend(server.path))
            self._sessions[server] = Session(load, frontend, number)
        stack.callback(self._stop)

    def _stop(self) -> None:
        # Nothing may be mapped without a ring, while all processes are still there.
        for session in self._sessions.values():
            session.stop()
        assert not self.puppet.grants_in_use()

    def compare(self, depth: int, rounds: int, seconds: float, *, write: bool) -> list[dict[str, Any]]:
        """The figures of each mode, for `depth` requests under way; each run takes `seconds`."""
        servers = [*self._sessions]
        figures: dict[Served, list[dict[str, float]]] = {server: [] for server in servers}
        for number in range(rounds):
            for server in servers if number % 2 else reversed(servers):
                figures[server].append(self._run(server, depth, seconds, write))
        base = figures[servers[0]]
        made = []
        for server in servers:
            rows = figures[server]
            sums = {name: sum(row[name] for row in rows) for name in ("requests", *COUNTED)}
            calls = self._system_calls(server, depth, seconds, write)
            made.append(
                {
                    "mode": server.mode,
                    "depth": depth,
                    "write": write,
                    "rate": statistics.median(row["rate"] for row in rows),
                    "ratio": statistics.median(
                        row["rate"] / of["rate"] for row, of in zip(rows, base, strict=True)
                    ),
                    "cpu": statistics.median(row["cpu"] for row in rows),
                    "system_calls": calls,
                    **sums,
                }
            )
        return made

    def _run(self, server: Served, depth: int, seconds: float, write: bool) -> dict[str, float]:
        before, cpu = server.counts(), server.cpu()
        run = self._sessions[server].run(depth, seconds, write=write)
        used, counts = server.cpu() - cpu, server.counts()
        counted = {name: counts[name] - before[name] for name in COUNTED}
        rate = run.requests / run.seconds
        return {"requests": run.requests, "rate": rate, "cpu": used / run.requests, **counted}

    def _system_calls(self, server: Served, depth: int, seconds: float, write: bool) -> float:
        # Per request, in a run of its own.
        with counting() as made:
            run = self._sessions[server].run(depth, seconds, write=write)
            return made(server.pid) / run.requests


def measure(depths: list[int], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """All figures of requests."""
    with ExitStack() as stack:
        bench = Bench(stack)
        return [
            row
            for write in (False, True)
            for depth in depths
            for row in bench.compare(depth, rounds, seconds, write=write)
        ]


def measure_pieces(rounds: int) -> dict[str, Any]:
    """All figures of single batches."""
    with Control() as control, Puppet(control, DomainKind.HVM, 1024) as puppet:
        for page in range(puppet.pages):
            puppet.grant(FIRST_REF + page, page)
        return {
            "pieces": break_even(puppet, rounds),
            "directions": both_directions(puppet, rounds),
            "own": own_time(puppet, rounds),
        }


def say(lines: Iterable[str]) -> None:
    """On standard output, now."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def program(*arguments: str, json_file: Path) -> dict[str, Any]:
    """Runs all this in a process of its own, which nothing watches; its figures.

    :param json_file: is written.
    """
    command = [sys.executable, "-m", __name__, "--json", str(json_file), *arguments]
    subprocess.run(command, env=environment(), check=True)
    figures: dict[str, Any] = json.loads(json_file.read_text())
    return figures


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, action="append", help="requests under way (1, 32 and 128)")
    parser.add_argument("--rounds", type=int, default=15, help="of requests; 0: none (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.25, help="of each run (%(default)s)")
    parser.add_argument("--batches", type=int, default=101, help="rounds of batches; 0: none (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    if arguments.batches:
        figures |= measure_pieces(arguments.batches)
        say(piece_tables(figures))
    if arguments.rounds:
        depths = arguments.depth or [*DEPTHS]
        figures["requests"] = measure(depths, arguments.rounds, arguments.seconds)
        say(request_tables(figures["requests"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


@pytest.mark.timeout(3600)
def test_all_figures() -> None:
    """Collected only when this file is named."""
    program(json_file=Path("/results/grants.json"))


if __name__ == "__main__":
    main()
