# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""docs/peers.md has the rows that the lab's tests make, and no others."""

import os
from pathlib import Path

from tests.lab import peers
from tests.lab.inner import CHECKOUT, inner_pytest
from tests.lab.peers import NOT_RUN, PASSED, Row

TABLE = CHECKOUT / "docs/peers.md"

TESTS = """\
import pytest

from tests.lab.peers import Peer, met

LEFT, RIGHT = Peer("Left", lambda: "1.2"), Peer("Right", lambda: "3.4")
pytestmark = met(LEFT, deed="handshake")


def test_it() -> None:
    pass


@met(LEFT, RIGHT, deed="dance, {kind}")
@pytest.mark.parametrize("kind", ["slow", "fast"])
@pytest.mark.parametrize("turn", [1, 2])
def test_both(kind: str, turn: int) -> None:
    assert (kind, turn) != ("fast", 2)
"""


def run(file: Path, *arguments: str | os.PathLike[str]) -> list[Row]:
    """The rows that a run of pytest writes into the table of `file`."""
    done = inner_pytest("-q", *arguments, VHOST_LAB_PEERS=str(file))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return peers.read(file)


def test_the_table_is_complete(tmp_path: Path) -> None:
    made = set(run(tmp_path / "peers.md", "--collect-only", "-m", "lab", "tests/lab"))
    listed = set(peers.read(TABLE))
    advice = "run VHOST_LAB_PEERS=docs/peers.md tox -e lab"
    assert made, "no lab test meets a peer"
    assert not made - listed, f"docs/peers.md lacks rows: {advice}, or the tests that make them"
    assert not listed - made, "docs/peers.md has rows that no test makes: delete them"


def test_all_in_the_table_passed_in_some_version() -> None:
    assert [row for row in peers.read(TABLE) if row.result != PASSED or not row.version] == []


def test_a_run_adds_its_results_to_a_table(tmp_path: Path) -> None:
    file, tests = tmp_path / "peers.md", tmp_path / "test_some.py"
    tests.write_text(TESTS)
    file.write_text("before\n\n")
    old = Row("Other", "is left alone", "5", PASSED), Row("Left", "handshake", "0", "failed")
    peers.update(file, old)
    with_lab = ("-p", "tests.lab.conftest", f"--rootdir={tmp_path}", tests)
    run(file, "--collect-only", *with_lab)
    assert f"| Left + Right |  | dance, slow | {NOT_RUN} |" in file.read_text()
    run(file, *with_lab)
    assert file.read_text().splitlines() == [
        "before",
        "",
        "| peer | version | what was done | result |",
        "| --- | --- | --- | --- |",
        "| Left | 1.2 | handshake | passed |",
        "| Left + Right | 1.2 + 3.4 | dance, fast | 1 failed, 1 passed |",
        "| Left + Right | 1.2 + 3.4 | dance, slow | passed |",
        "| Other | 5 | is left alone | passed |",
    ]
