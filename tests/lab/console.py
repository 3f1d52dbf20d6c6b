# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a machine printed last, from its fault on."""

import re
from pathlib import Path

__all__ = ("last_words",)

LINES = 40
FAULT = re.compile(r"Kernel panic|BUG:|Oops:|Xen BUG|Panic on CPU")


def last_words(console: Path) -> list[str]:
    """The file's name and its end, from the last fault on if that is earlier; nothing if there is no file."""
    if not console.exists():
        return []
    lines = console.read_text(errors="replace").splitlines()
    faults = [number for number, line in enumerate(lines) if FAULT.search(line)]
    recent = max(0, len(lines) - LINES)
    return [f"{console.name}:", *lines[min([recent, *faults[-1:]]) :]]
