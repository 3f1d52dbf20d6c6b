# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a machine printed last, from its fault on; and whether it is the emulator's fault."""

import re
from pathlib import Path

__all__ = ("last_words", "stalled")

LINES = 40
FAULT = re.compile(r"Kernel panic|BUG:|Oops:|Xen BUG|Panic on CPU")
# QEMU's emulation now and then loses a timer of an idle processor, and the kernel waits for ever. A processor
# that is kept busy, by a driver that waits for its device say, is a stall to the kernel too, of another name.
STALL = re.compile(r"kthread timer wakeup didn't happen")


def last_words(console: Path) -> list[str]:
    """The file's name and its end, from the last fault on if that is earlier; nothing if there is no file."""
    if not console.exists():
        return []
    lines = console.read_text(errors="replace").splitlines()
    faults = [number for number, line in enumerate(lines) if FAULT.search(line)]
    recent = max(0, len(lines) - LINES)
    return [f"{console.name}:", *lines[min([recent, *faults[-1:]]) :]]


def stalled(console: Path, start: int = 0) -> bool:
    """Whether the file says that a timer was lost, and of no fault that a guest can be made to commit.

    :param start: where to begin, in bytes.
    """
    if not console.exists():
        return False
    text = console.read_bytes()[start:].decode(errors="replace")
    return bool(STALL.search(text)) and not FAULT.search(text)
