# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the wheels hold. ``VHOST_WHEELS`` names the folder they were built into; see the sdist row of tox."""

import os
import sysconfig
import tomllib
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from vhost import __version__

FOLDER = os.environ.get("VHOST_WHEELS", "")
ROOT = Path(__file__).parents[1]
needs_wheels = pytest.mark.skipif(not FOLDER, reason="VHOST_WHEELS does not say where the wheels are")


def wheel(name: str) -> Path:
    (found,) = Path(FOLDER).glob(f"{name}-*.whl")
    return found


def contents(name: str) -> list[str]:
    return ZipFile(wheel(name)).namelist()


def modules(name: str) -> list[str]:
    return sorted(path for path in contents(name) if ".dist-info/" not in path)


def metadata(name: str) -> Message:
    archive = ZipFile(wheel(name))
    (path,) = (path for path in archive.namelist() if path.endswith(".dist-info/METADATA"))
    return Parser().parsestr(archive.read(path).decode())


@needs_wheels
def test_the_wheel_serves_every_interpreter_and_both_builds() -> None:
    limited = not sysconfig.get_config_var("Py_GIL_DISABLED")
    assert ("-cp311-abi3-linux_" in wheel("vhost").name) is limited
    found = modules("vhost")
    assert all(path.startswith("vhost/") for path in found)
    for path in ("py.typed", "_core.pyi", "mem/unix.py", "mem/xen.py"):
        assert f"vhost/{path}" in found
    core = [path for path in found if path.endswith(".so")]
    assert core == ["vhost/_core.abi3.so"] or not limited
    assert not [path for path in found if path.endswith((".c", ".h", ".o"))]


@needs_wheels
def test_the_wheel_needs_cffi_alone_and_offers_the_selector() -> None:
    needs = metadata("vhost").get_all("Requires-Dist")
    assert needs == ["cffi>=2.0", f'vhost-xen=={__version__}; extra == "xen"']


@needs_wheels
def test_the_selector_has_no_code_and_does_not_depend_on_what_it_selects() -> None:
    assert modules("vhost_xen") == []
    assert metadata("vhost_xen").get_all("Requires-Dist") == ["pyxenctrl>=0.1"]
    archive = ZipFile(wheel("vhost_xen"))
    (path,) = (path for path in archive.namelist() if path.endswith("entry_points.txt"))
    assert archive.read(path).decode().split() == ["[vhost.mem]", "xen", "=", "vhost.mem.xen:XenMemory"]
    assert wheel("vhost_xen").name.endswith("-py3-none-any.whl")


@needs_wheels
def test_the_bindings_are_pure_python_with_their_licence() -> None:
    assert wheel("pyxenctrl").name.endswith("-py3-none-any.whl")
    assert "pyxenctrl/py.typed" in modules("pyxenctrl")
    assert all(path.startswith("pyxenctrl/") for path in modules("pyxenctrl"))
    assert metadata("pyxenctrl").get_all("Requires-Dist") is None
    licences = [path for path in contents("pyxenctrl") if "/licenses/" in path]
    assert len(licences) == 2


@pytest.mark.skipif(not (ROOT / "packages").is_dir(), reason="the source distribution is vhost's alone")
def test_the_three_distributions_have_one_version() -> None:
    folders = [ROOT, ROOT / "packages" / "vhost-xen", ROOT / "packages" / "pyxenctrl"]
    projects = [tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in folders]
    assert {project["version"] for project in projects} == {__version__}
    assert projects[0]["optional-dependencies"]["xen"] == [f"vhost-xen == {__version__}"]
