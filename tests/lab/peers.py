# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The programs of other authors that the lab's tests meet, and the table of what came of it.

A test says by :func:`met` which peers it met and what was done; the result is the test's own. With
``VHOST_LAB_PEERS=FILE`` a run writes its rows into the table of that file: rows of the same peer and deed are
replaced, others and the text around the table stay.
"""

import functools
import gzip
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

__all__ = ("NOT_RUN", "PASSED", "Peer", "Recorder", "Row", "asked", "met", "packaged", "read", "update")

VARIABLE = "VHOST_LAB_PEERS"
HEAD = ("peer", "version", "what was done", "result")
PASSED, NOT_RUN = "passed", "not run"
PROPERTY = "peer"


@dataclass(frozen=True, slots=True)
class Peer:
    """A program or library of other authors.

    :param name: how its authors write it.
    :param version: asks the program, or its package, for the version that the tests run. It may raise
        :class:`tests.lab.prerequisites.Missing`.
    """

    name: str
    version: Callable[[], str]


def asked(argv: Sequence[str | os.PathLike[str]], pattern: str = r"version v?(\d[\w.]*)") -> str:
    """What a program that is asked for its version says.

    :param pattern: its group is the version, in standard output or error.
    """
    said = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    found = re.search(pattern, said.stdout + said.stderr)
    assert found, f"no version in {said.stdout + said.stderr!r}"
    return found[1]


def packaged(root: Path, package: str) -> str:
    """The version of the unpacked package in ``root``, as its authors count: without Debian's part.

    :param package: one with a changelog of Debian.
    """
    with gzip.open(root / "usr/share/doc" / package / "changelog.Debian.gz", "rt") as changelog:
        first = changelog.readline()
    found = re.match(r"\S+ \((?:\d+:)?([^-)]+)", first)
    assert found, first
    return found[1]


def met(*peers: Peer, deed: str) -> pytest.MarkDecorator:
    """Marks a test, or by ``pytestmark`` all of a module: it met these peers together.

    :param deed: what was done, in a few words. Tests with the same peers and deed share a row. Names in
        braces stand for the test's parameters.
    """
    return pytest.mark.peer(*peers, deed=deed)


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """A row of the table; ``peer`` and ``deed`` tell it from others."""

    peer: str
    deed: str
    version: str = field(compare=False)
    result: str = field(compare=False)


def read(file: Path) -> list[Row]:
    """The rows of the table in a file; none if there is no file."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else []:
        cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
        if line.startswith("|") and len(cells) == len(HEAD) and cells != HEAD and set(line) - set("|- "):
            peer, version, deed, result = cells
            rows.append(Row(peer, deed, version, result))
    return rows


def update(file: Path, rows: Iterable[Row]) -> None:
    """Replaces the rows of the same peers and deeds in a file's table, adds the others, and sorts all."""
    known = {row: row for row in (*read(file), *rows)}
    cells = [HEAD, ("---",) * len(HEAD)]
    cells += [(row.peer, row.version, row.deed, row.result) for row in sorted(known.values())]
    table = ["| " + " | ".join(line) + " |" for line in cells]
    lines = file.read_text().splitlines() if file.exists() else []
    places = [number for number, line in enumerate(lines) if line.startswith("|")]
    start, end = (places[0], places[-1] + 1) if places else (len(lines), len(lines))
    file.write_text("\n".join((*lines[:start], *table, *lines[end:])) + "\n")


class Recorder:
    """A plugin of pytest: what became of the tests that met a peer, written in the end.

    :param file: with the table.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._meetings: dict[str, tuple[str, str, str]] = {}  # of a test: peer, deed, version
        self._outcomes: dict[str, str] = {}

    @classmethod
    def wanted(cls) -> "Recorder | None":
        """A recorder, if the environment asks for one."""
        file = os.environ.get(VARIABLE)
        return cls(Path(file).absolute()) if file else None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if meeting := meeting_of(item):
                self._meetings[item.nodeid] = (*meeting, "")
                self._outcomes[item.nodeid] = NOT_RUN

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        # A report takes properties along, from xdist's workers too.
        if (mark := item.get_closest_marker("peer")) and (meeting := meeting_of(item)):
            version = " + ".join(map(version_of, mark.args))
            item.user_properties.append((PROPERTY, (*meeting, version)))
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == PROPERTY and isinstance(value, tuple | list):
                self._meetings[report.nodeid] = tuple(map(str, value))
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            update(self._file, self._rows())

    def _rows(self) -> list[Row]:
        tests: dict[tuple[str, str], list[str]] = {}
        for test, (peer, deed, _) in self._meetings.items():
            tests.setdefault((peer, deed), []).append(test)
        rows = []
        for (peer, deed), names in tests.items():
            versions = sorted({self._meetings[name][2] for name in names} - {""})
            results = Counter(self._outcomes[name] for name in names)
            text = ", ".join(f"{count} {result}" for result, count in sorted(results.items()))
            rows.append(Row(peer, deed, ", ".join(versions), text if len(results) > 1 else min(results)))
        return rows


@functools.cache
def version_of(peer: Peer) -> str:
    # Each is asked once in a run.
    return peer.version()


def meeting_of(item: pytest.Item) -> tuple[str, str] | None:
    # Peer and deed of a test, as a row has them.
    mark = item.get_closest_marker("peer")
    if mark is None:
        return None
    call = getattr(item, "callspec", None)
    deed = mark.kwargs["deed"].format_map(call.params if call else {})
    return " + ".join(peer.name for peer in mark.args), deed
