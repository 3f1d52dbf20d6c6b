# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One installation, one way to map guest memory: decided by what is installed, never by what works.

Each case is a fresh interpreter that sees no site-packages, only a folder with this package, the run-time
part of cffi, and the metadata of what is "installed".
"""

import ctypes.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import _cffi_backend
import pytest

import vhost
from vhost.mem import SELECTED

from .xen.standin import fakes

OTHER = "xen" if SELECTED == "unix" else "unix"
# Where the checkout has it; a source distribution does not.
PYXENCTRL = Path(__file__).parents[1] / "packages" / "pyxenctrl" / "pyxenctrl"
needs_pyxenctrl = pytest.mark.skipif(not PYXENCTRL.is_dir(), reason="no checkout: pyxenctrl is not here")
Run = Callable[..., subprocess.CompletedProcess[str]]


def install(site: Path, name: str, entry: str, group: str = "vhost.mem") -> None:
    info = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed distributions: this package, and nothing that selects a build."""
    site = tmp_path / "site"
    site.mkdir()
    for path in (Path(vhost.__file__).parent, Path(_cffi_backend.__file__)):
        (site / path.name).symlink_to(path)
    return site


@pytest.fixture
def python(site: Path, tmp_path: Path) -> Run:
    """Runs code with those distributions installed."""

    def run(code: str, libraries: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-c", code],
            cwd=tmp_path,
            env={"PYTHONPATH": str(site), "LD_LIBRARY_PATH": libraries},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


SHOW = """
import sys, vhost.mem as m
loaded = [name for name in ("unix", "xen") if f"vhost.mem.{name}" in sys.modules]
print(m.SELECTED, m.Memory.__name__, m.Memory.uses_xen, *loaded)
"""
# After a failure: nothing may have been loaded in the place of what failed.
FAIL = """
import sys
try:
    import vhost.mem
finally:
    print("vhost.mem.unix" in sys.modules)
"""
HYPER = "from vhost.mem.memory import GuestMemory\nclass Hyper(GuestMemory):\n    uses_xen = False\n"


def test_nothing_installed_is_the_unix_build(python: Run) -> None:
    assert python(SHOW).stdout.split() == ["unix", "UnixMemory", "False", "unix"]


def test_other_groups_do_not_matter(site: Path, python: Run) -> None:
    install(site, "stranger", "xen = vhost.mem.xen:XenMemory", group="vhost.devices")
    assert python(SHOW).stdout.split()[0] == "unix"


def test_one_distribution_is_the_build_it_names(site: Path, python: Run) -> None:
    install(site, "vhost-hyper", "hyper = hyper:Hyper")
    (site / "hyper.py").write_text(HYPER)
    assert python(SHOW).stdout.split() == ["hyper", "Hyper", "False"]


def test_two_distributions_are_an_error_that_names_both(site: Path, python: Run) -> None:
    install(site, "vhost-xen", "xen = vhost.mem.xen:XenMemory")
    install(site, "vhost-hyper", "hyper = hyper:Hyper")
    done = python("import vhost.mem")
    assert done.returncode != 0
    assert "ImportError: several guest memory implementations" in done.stderr
    assert (
        "hyper (hyper:Hyper, from vhost-hyper) and xen (vhost.mem.xen:XenMemory, from vhost-xen)"
        in done.stderr
    )


def test_a_class_that_is_no_guest_memory_is_refused(site: Path, python: Run) -> None:
    install(site, "vhost-hyper", "hyper = pathlib:Path")
    assert "pathlib:Path, registered in the entry-point group vhost.mem" in python("import vhost.mem").stderr


def test_a_selector_without_pyxenctrl_does_not_import(site: Path, python: Run) -> None:
    install(site, "vhost-xen", "xen = vhost.mem.xen:XenMemory")
    done = python(FAIL)
    assert done.returncode != 0
    assert "ImportError: this installation of vhost is the Xen build, which needs pyxenctrl" in done.stderr
    assert "pip install pyxenctrl" in done.stderr
    assert done.stdout == "False\n"


@needs_pyxenctrl
@pytest.mark.skipif(ctypes.util.find_library("xengnttab") is not None, reason="the Xen libraries are here")
def test_a_selector_without_the_xen_libraries_does_not_import(site: Path, python: Run) -> None:
    install(site, "vhost-xen", "xen = vhost.mem.xen:XenMemory")
    (site / "pyxenctrl").symlink_to(PYXENCTRL)
    done = python(FAIL)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(
        "ImportError: this installation of vhost is the Xen build, but a Xen library is missing"
    )
    for word in ("libxengnttab.so.1", "libxengnttab1", "pip uninstall vhost-xen"):
        assert word in message
    assert done.stdout == "False\n"


@needs_pyxenctrl
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_with_the_libraries_it_is_the_xen_build(site: Path, python: Run, tmp_path: Path) -> None:
    install(site, "vhost-xen", "xen = vhost.mem.xen:XenMemory")
    (site / "pyxenctrl").symlink_to(PYXENCTRL)
    fakes.build(tmp_path)
    done = python(SHOW, libraries=str(tmp_path))
    assert done.stdout.split() == ["xen", "XenMemory", "True", "xen"], done.stderr


def test_the_other_build_cannot_be_imported_here() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import vhost.mem\nimport vhost.mem.{OTHER}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert f"maps guest memory with {SELECTED!r}, so {OTHER!r} is not available" in done.stderr


def test_the_same_metadata_twice_on_the_path_is_one(site: Path, python: Run) -> None:
    install(site, "vhost-hyper", "hyper = hyper:Hyper")
    install(site / "again", "vhost-hyper", "hyper = hyper:Hyper")
    (site / "hyper.py").write_text(HYPER)
    done = python(f"import sys\nsys.path.append({str(site / 'again')!r})\n" + SHOW)
    assert done.stdout.split() == ["hyper", "Hyper", "False"]


def test_an_unregistered_build_needs_no_metadata_library(site: Path, python: Run) -> None:
    install(site, "stranger", "xen = vhost.mem.xen:XenMemory", group="vhost.devices")
    done = python("import sys, vhost.mem\nprint('importlib.metadata' in sys.modules)")
    assert done.stdout.split() == ["False"], done.stderr


def test_a_distribution_in_an_archive_is_found(site: Path, python: Run, tmp_path: Path) -> None:
    install(tmp_path / "packed", "vhost-hyper", "hyper = hyper:Hyper")
    (tmp_path / "packed" / "hyper.py").write_text(HYPER)
    archive = shutil.make_archive(str(tmp_path / "hyper"), "zip", tmp_path / "packed")
    done = python(f"import sys\nsys.path.append({archive!r})\n" + SHOW)
    assert done.stdout.split() == ["hyper", "Hyper", "False"], done.stderr


def test_a_distribution_that_only_a_finder_knows_is_found(site: Path, python: Run, tmp_path: Path) -> None:
    install(tmp_path / "elsewhere", "vhost-hyper", "hyper = hyper:Hyper")
    (site / "hyper.py").write_text(HYPER)
    finder = f"""
import importlib.metadata as metadata, sys
class Finder(metadata.DistributionFinder):
    def find_spec(self, name, path=None, target=None):
        return None
    def find_distributions(self, context):
        there = self.Context(name=context.name, path=[{str(tmp_path / "elsewhere")!r}])
        return metadata.MetadataPathFinder.find_distributions(there)
sys.meta_path.append(Finder())
"""
    done = python(finder + SHOW)
    assert done.stdout.split() == ["hyper", "Hyper", "False"], done.stderr


def test_the_version_says_which_build(site: Path, python: Run) -> None:
    from vhost import version

    assert version.describe().startswith(f"vhost {version.__version__} (memory: {SELECTED}, core: ")
    line = python("from vhost.version import describe\nprint(describe())").stdout
    assert line == version.describe().replace(f"memory: {SELECTED}", "memory: unix") + "\n"
    core = line.rstrip(")\n").rpartition(" ")[2]
    assert core == "abi3" or core.startswith("cpython-")


def test_importing_one_build_decides_it_for_the_process(
    python: Run,
) -> None:
    done = python("import vhost.mem.unix\nimport vhost.mem.xen")
    assert "maps guest memory with 'unix', so 'xen' is not available; " in done.stderr
    assert "pip install 'vhost[xen]'" in done.stderr


@pytest.mark.parametrize(
    ("expected", "runs"), [(SELECTED, True), ("", True), (OTHER, False), ("typo", False)]
)
def test_the_run_stops_when_another_build_was_meant(expected: str, runs: bool) -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--import-mode=append", "-p", "no:cacheprovider"),
            *("--collect-only", "-q", str(here / "mem" / "test_regions.py")),
        ],
        cwd=here.parent,
        env=os.environ | {"VHOST_EXPECT_MEM": expected},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) is runs, done.stdout + done.stderr
    if not runs:
        assert f"VHOST_EXPECT_MEM={expected} is what was to be tested, but this is vhost" in done.stderr
        assert "test_regions" not in done.stdout
