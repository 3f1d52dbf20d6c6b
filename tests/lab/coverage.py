# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The coverage that dom0 measured, in all its Python processes: put together and reported on this machine."""

from pathlib import Path

from tests.lab import wheels
from tests.lab.userland import Userland

__all__ = ("CONFIGURATION", "report")

CONFIGURATION = Path(__file__).with_name("dom0-coverage.txt")


def report(userland: Userland, own: Path, results: Path) -> Path | None:
    """Makes one file of dom0's data, and coverage.txt, .xml and .json of that, all in the results.

    :param userland: dom0's root; its Python does it, with the coverage package of the tests' layer.
    :param own: the layer of the wheels that were measured.
    :returns: coverage.txt; None if there is no data.
    """
    parts = sorted(results.glob("coverage.part.*"))
    data = results / "coverage.data"
    if not parts:
        return None
    environment = {
        "PYTHONPATH": str(wheels.packages(userland, wheels.test_layer(userland))),
        "COVERAGE_RCFILE": str(CONFIGURATION),
        "COVERAGE_FILE": str(data),
    }

    def coverage(*arguments: str | Path) -> str:
        place = wheels.packages(userland, own)
        return userland.python("-m", "coverage", *arguments, environment=environment, cwd=place)

    coverage("combine", "--quiet", *parts)
    coverage("xml", "--quiet", "-o", results / "coverage.xml")
    coverage("json", "--quiet", "-o", results / "coverage.json")
    text = results / "coverage.txt"
    text.write_text(coverage("report"))
    return text
