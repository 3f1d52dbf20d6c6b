# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""How many system calls a process makes, counted by the kernel (tracefs, a histogram of raw_syscalls)."""

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ("counting",)

TRACING = Path("/sys/kernel/tracing")
EVENT = TRACING / "events/raw_syscalls/sys_enter"
HISTOGRAM = "hist:keys=common_pid:size=4096"
LINE = re.compile(r"{ common_pid: +(\d+) } hitcount: +(\d+)")


@contextlib.contextmanager
def counting() -> Iterator[Callable[[int], int]]:
    """Counts meanwhile, which slows everything down; the function says how many calls a process has made."""
    if not EVENT.exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=True)
    trigger = EVENT / "trigger"
    trigger.write_text(HISTOGRAM)

    def made(pid: int) -> int:
        tasks = {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()}
        found = LINE.findall((EVENT / "hist").read_text())
        return sum(int(count) for task, count in found if int(task) in tasks)

    try:
        yield made
    finally:
        trigger.write_text(f"!{HISTOGRAM}")
