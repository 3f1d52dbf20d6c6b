# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Holds the imports of the package to the layers that docs/architecture.md draws."""

import ast
from pathlib import Path

import pytest

import vhost

ROOT = Path(vhost.__file__).parent

# What a part may import of ours, by the first name below vhost; its own modules are always allowed.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "protocol": {"errors"},
    "virtio": set(),
    "mem": {"errors", "_core"},
    "virtqueue": {"errors", "_core", "mem"},
    "devices": {"errors", "_core", "mem", "virtqueue", "virtio"},
    "io": {"errors", "_core"},
    "backend": {"errors", "_core", "mem", "virtqueue", "devices", "protocol", "io"},
    "frontend": {"errors", "_core", "mem", "virtqueue", "virtio", "protocol", "io"},
    "daemon": {"errors", "mem", "devices", "backend", "io", "options", "protocol", "virtio", "version"},
    "bench": {"errors", "_core", "frontend", "virtio", "protocol"},
    "cli": {"errors", "mem", "devices", "frontend", "bench", "options", "protocol", "virtio", "version"},
}
# Modules of the standard library that do I/O, run threads or loops: only the edge has them.
EDGE = {"socket", "select", "selectors", "asyncio", "signal", "subprocess", "threading.Thread"}
BELOW_THE_EDGE = ("errors", "protocol", "virtio", "mem", "virtqueue", "devices")


def imports(path: Path) -> list[str]:
    package = ("vhost", *path.relative_to(ROOT).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


MODULES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem == "errors")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_keeps_to_its_layer(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("vhost.")}
    assert ours <= ALLOWED[part] | {part}
    if part in BELOW_THE_EDGE:
        assert not any(name == edge or name.startswith(f"{edge}.") for name in imports(path) for edge in EDGE)


def test_every_part_is_drawn() -> None:
    parts = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert parts <= set(ALLOWED)
