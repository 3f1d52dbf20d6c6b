# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Builds tests/virtqueue/races.c with the C core's rings, once for each sanitizer, and runs it.

An argument is the number of requests for each kind of ring. ``CC`` names the compiler (gcc by default).
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RINGS = "mem guard walk pop push notify notifier inflight log driver driver_split driver_packed"
FLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-fno-sanitize-recover=all"]
# TSan knows nothing of fences. They are there for who sleeps, not for what is read.
SANITIZERS = {"thread": ["-fsanitize=thread", "-Wno-tsan"], "address": ["-fsanitize=address,undefined"]}


def main() -> None:
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    sources = [
        ROOT / "tests/virtqueue/races.c",
        *(ROOT / f"csrc/{name}.c" for name in RINGS.split()),
    ]
    with tempfile.TemporaryDirectory(prefix="vhost-races-") as folder:
        for name, flags in SANITIZERS.items():
            program = Path(folder) / name
            command = [
                *compiler,
                *FLAGS,
                *flags,
                f"-I{ROOT / 'csrc'}",
                *map(str, sources),
                "-o",
                str(program),
            ]
            subprocess.run(command, check=True)
            subprocess.run([program, *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
