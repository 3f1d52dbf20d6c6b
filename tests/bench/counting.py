# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Counts the instructions that the C core takes for a request, with callgrind."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUESTS = 12800
CFLAGS = ("-std=gnu11", "-O2", "-g", "-D_FILE_OFFSET_BITS=64")


def compiler() -> str:
    """Name and major version of the compiler that ``CC`` names, gcc by default: ``gcc-12``."""
    cc = os.environ.get("CC", "gcc")
    macros = subprocess.run(
        [cc, "-dM", "-E", "-"], input="", capture_output=True, text=True, check=True
    ).stdout
    defined = dict(re.findall(r"^#define (\S+) (\S+)$", macros, re.MULTILINE))
    if "__clang_major__" in defined:
        return f"clang-{defined['__clang_major__']}"
    return f"gcc-{defined['__GNUC__']}"


def build(folder: Path) -> Path:
    """The harness, with the sources of the core, as the package is compiled."""
    program = folder / "ring"
    sources = [Path(__file__).with_name("ring.c"), *sorted((ROOT / "csrc").glob("*.c"))]
    cc = os.environ.get("CC", "gcc")
    subprocess.run([cc, *CFLAGS, f"-I{ROOT / 'csrc'}", "-o", program, *sources, "-pthread"], check=True)
    return program


def instructions(program: Path, side: str, *features: str) -> float:
    """Instructions per request in the functions of one side, ``device`` or ``driver``."""
    out = program.with_name(f"callgrind.{side}.{'.'.join(features)}")
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            f"--toggle-collect={side}_side",
            f"--callgrind-out-file={out}",
            "-q",
            program,
            str(REQUESTS),
            *features,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == REQUESTS
    found = re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE)
    assert found, f"{out} has no sum"
    return int(found.group(1)) / REQUESTS
