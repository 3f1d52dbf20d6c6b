# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The project's own wheels of the Xen build, and Python packages laid out as a layer of a Debian root.

A layer is a folder that holds ``usr/local`` as ``pip install`` would fill it there. pip runs on this machine,
for the root's Python; nothing of this machine's Python gets in.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.lab import cache
from tests.lab.prerequisites import Missing
from tests.lab.userland import Userland

__all__ = ("CHECKOUT", "own_layer", "packages", "test_layer")

CHECKOUT = Path(__file__).parents[2]
# What the wheels are made of.
SOURCES = ("csrc", "vhost", "packages", "LICENSES", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
PROJECTS = (".", "packages/vhost-xen", "packages/pyxenctrl")
MADE = ("__pycache__", "*.pyc", "*.egg-info", "*.so", "_core.c", "build")
OLD_SECONDS = 24 * 3600
TOOLS = ("pytest >= 8", "pytest-timeout", "coverage >= 7.10")


def packages(userland: Userland, layer: Path) -> Path:
    """The folder of a layer in which Python finds packages."""
    return layer / f"usr/local/lib/python{userland.python_version}/dist-packages"


def test_layer(userland: Userland) -> Path:
    """The layer of what the tests and the wheels need: pytest, coverage, the project's dependencies.

    :raises Missing: pip cannot provide them.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = [*TOOLS, *project["dependencies"]]
    mark = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]

    def make(place: Path) -> None:
        install(userland, place, wanted)

    return cache.kept(f"python{userland.python_version}-{mark}", make)


def own_layer(userland: Userland) -> Path:
    """The layer of the project's wheels as the checkout is now.

    :raises Missing: they cannot be built or installed; pip says why.
    """
    digest = hashlib.sha256()
    for file in sources():
        content = file.read_bytes()
        digest.update(f"{file.relative_to(CHECKOUT)} {len(content)}\n".encode() + content)
    mark = digest.hexdigest()[:12]

    def make(place: Path) -> None:
        install(userland, place, cache.kept(f"wheels-{mark}", build).glob("*.whl"), "--no-deps")

    layer = cache.kept(f"python{userland.python_version}-own-{mark}", make)
    for names in ("wheels-*", "python*-own-*"):  # of other states of the checkout
        cache.expire(names, OLD_SECONDS)
    return layer


def sources() -> Iterator[Path]:
    # The files of SOURCES, in a fixed order.
    ignored = shutil.ignore_patterns(*MADE)

    def walk(path: Path) -> Iterator[Path]:
        if not path.is_dir():
            yield path
            return
        names = sorted(entry.name for entry in path.iterdir())
        for name in names:
            if name not in ignored(str(path), names):
                yield from walk(path / name)

    for source in SOURCES:
        yield from walk(CHECKOUT / source)


def build(place: Path) -> None:
    # From a copy: setuptools leaves files behind in the tree that it builds, and would pack old ones.
    with tempfile.TemporaryDirectory(prefix="vhost-lab-") as folder:
        for file in sources():
            copy = Path(folder) / file.relative_to(CHECKOUT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        pip("wheel", "--no-deps", "--wheel-dir", place, *(Path(folder) / name for name in PROJECTS))


def install(userland: Userland, layer: Path, wanted: Iterable[str | Path], *options: str) -> None:
    # Installs into a layer for the userland's Python and compiles there, by that Python.
    target = packages(userland, layer)
    binary = ("--only-binary=:all:", "--implementation", "cp", "--python-version", userland.python_version)
    pip("install", "--no-compile", "--target", target, *binary, *options, *wanted)
    scripts = layer / "usr/local/bin"
    if (target / "bin").exists():
        (target / "bin").rename(scripts)
        for script in scripts.iterdir():
            # pip names the Python that it runs on.
            script.write_bytes(b"#!/usr/bin/python3\n" + script.read_bytes().partition(b"\n")[2])
    userland.compile(target)


def pip(*arguments: str | os.PathLike[str]) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PIP_TARGET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"pip {arguments[0]}: status {done.returncode}: {(done.stderr or done.stdout).strip()}")
