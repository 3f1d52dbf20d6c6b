# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Nothing is lost, whatever instruction of the core is the last one, and no page is marked dirty too early.

``VHOST_STEPS`` says how many rings of each kind are gone through, and more of what may follow; by default
it is one of the most different kinds.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SEEDS = int(os.environ.get("VHOST_STEPS", "0"))
FEW = {"killed": ["split", "packed", "packed-in-order"], "logged": ["split", "packed"]}
ALL = [
    "split",
    "big-endian",
    "packed",
    "split-in-order",
    "packed-in-order",
    "split-indirect",
    "packed-indirect",
]
CASES = [
    (what, kind, seed)
    for what, few in FEW.items()
    for kind in (ALL if SEEDS else few)
    for seed in range(SEEDS or 1)
]

pytestmark = [
    pytest.mark.usefixtures("unix_build"),
    # Elsewhere, atomic instructions can be loops that never end when they are interrupted in each round.
    pytest.mark.skipif(platform.machine() != "x86_64", reason="steps through atomic instructions"),
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize(("what", "kind", "seed"), CASES)
def test_behind_each_instruction(what: str, kind: str, seed: int) -> None:
    script = Path(__file__).with_name("steps.py")
    following = 12 if SEEDS else 1
    done = subprocess.run(
        [sys.executable, str(script), what, kind, str(seed), str(following)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
