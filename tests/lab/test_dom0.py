# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab under Xen itself: what pytest says in dom0 comes back, and a lost dom0 is no failing test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.lab import xen
from tests.lab.dom0 import LOST, LostDom0
from tests.lab.wheels import CHECKOUT
from tests.lab.xen import RELEASES

# The first run downloads a few hundred megabytes.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SECONDS = 300
INSIDE = """\
import os
import subprocess
from pathlib import Path

import pyxenctrl
import vhost
from vhost import mem

PACKAGES = "/usr/local/lib/python3."


def test_the_wheels_are_tested():
    assert vhost.__file__.startswith(PACKAGES)
    assert pyxenctrl.__file__.startswith(PACKAGES)
    assert mem.SELECTED == "xen" == os.environ["VHOST_EXPECT_MEM"]
    assert os.environ["VHOST_XEN"] == "1"
    assert "memory: xen" in subprocess.check_output(["vhost", "--version"], text=True)
    subprocess.check_call(["vhost-rng", "--version"])


def test_this_is_dom0():
    assert Path("/sys/hypervisor/type").read_text() == "xen\\n"
    assert Path("/proc/xen/capabilities").read_text() == "control_d\\n"
    listed = subprocess.check_output(["xl", "list"], text=True)
    assert listed.splitlines()[1].startswith("Domain-0"), listed
    assert "gnttab_max_frames=48" in subprocess.check_output(["xl", "info", "xen_commandline"], text=True)
    for name in ("vmlinuz", "guest.cpio"):
        assert Path("/lab", name).stat().st_size > 100_000


def test_failing():
    assert not "as it should"
"""
CRASH = """\
from pathlib import Path


def test_crash():
    print("before the crash")
    Path("/proc/sysrq-trigger").write_text("c")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with pytest's settings and an empty folder of Xen tests."""
    made = tmp_path / "checkout"
    (made / "tests/xen").mkdir(parents=True)
    shutil.copyfile(CHECKOUT / "pyproject.toml", made / "pyproject.toml")
    return made


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder for results, whose name QEMU must not take apart."""
    made = tmp_path / "results,with,commas"
    made.mkdir()
    return made


@pytest.mark.parametrize("version", RELEASES)
def test_results_come_back_from_dom0(checkout: Path, results: Path, version: str) -> None:
    (checkout / "tests/xen/test_inside.py").write_text(INSIDE)
    options = ["gnttab_max_frames=48"]
    status = xen.run(
        RELEASES[version], results, ["tests/xen"], seconds=SECONDS, options=options, checkout=checkout
    )
    log = (results / "pytest.log").read_text()
    assert status == pytest.ExitCode.TESTS_FAILED, log
    cases = ElementTree.parse(results / "junit.xml").findall(".//testcase")
    outcomes = {case.attrib["name"]: [child.tag for child in case] for case in cases}
    assert outcomes == {
        "test_the_wheels_are_tested": [],
        "test_this_is_dom0": [],
        "test_failing": ["failure"],
    }, log
    assert f"dom0 of Xen {version}" in (results / "console.log").read_text()
    covered = (results / "coverage.txt").read_text()
    # The program of a child process too, under the names that files have in the checkout.
    assert [
        line.split()[-1] != "0%" for line in covered.splitlines() if line.startswith("vhost/daemon/rng.py")
    ] == [True]
    assert (results / "qemu.log").read_text() == ""


def test_a_crash_of_dom0_is_no_failing_test(checkout: Path, results: Path) -> None:
    (checkout / "tests/xen/test_crash.py").write_text(CRASH)
    with pytest.raises(LostDom0, match=r"(?s)is gone after .*Kernel panic - not syncing: sysrq"):
        xen.run(RELEASES["4.17"], results, ["tests/xen", "-s"], seconds=SECONDS, checkout=checkout)
    assert "before the crash" in (results / "pytest.log").read_text()


def test_a_hang_of_dom0_has_a_status_of_its_own(results: Path) -> None:
    command = [sys.executable, "-m", "tests.lab", "xen", "--seconds", "3", "--results", results]
    # The program is the checkout's, also where what is tested must not be.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == LOST, done.stderr
    assert "still runs after 3 s" in done.stderr
    assert "(XEN)" in done.stderr


def test_xen_tests_are_run_unless_others_are_named() -> None:
    assert xen.paths([]) == ["tests/xen"]
    assert xen.paths(["-k", "grants"]) == ["-k", "grants", "tests/xen"]
    named = ["-x", "tests/lab/test_dom0.py::test_it"]
    assert xen.paths(named) == named
