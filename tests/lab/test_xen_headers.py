# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""pyxenctrl's declarations against the C headers of each Xen that Debian has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import archive
from tests.lab.prerequisites import tool
from tests.lab.xen import RELEASES

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

PACKAGE = Path(__file__).parents[2] / "packages" / "pyxenctrl"


@pytest.mark.parametrize("version", RELEASES)
def test_declarations_are_those_of_the_headers(version: str) -> None:
    tool("cc")
    headers = archive.unpacked(["libxen-dev"], RELEASES[version].suite)
    environment = {
        **os.environ,
        "C_INCLUDE_PATH": str(headers / "usr" / "include"),
        "PYTHONPATH": str(PACKAGE),
    }
    command = [*(sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider")]
    done = subprocess.run(
        [*command, PACKAGE / "tests" / "test_prototypes.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout
