# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs pytest with the libraries of ASan and UBSan, which an instrumented core needs to have loaded first.

The core has to be built with ``VHOST_CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all"``, by
the compiler that ``CC`` names (gcc by default). Arguments are pytest's.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

COMPILER = os.environ.get("CC", "gcc")


def library(name: str) -> str:
    done = subprocess.run([COMPILER, f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    path = Path(done.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"{COMPILER} has no {name}: install the sanitizers' libraries")
    return str(path)


def check_core() -> None:
    """The core is not loaded for this: it cannot be, without the libraries."""
    package = importlib.util.find_spec("vhost")
    assert package is not None
    (core,) = (
        path for place in package.submodule_search_locations or () for path in Path(place).glob("_core.*.so")
    )
    if b"__asan_init" not in core.read_bytes():
        sys.exit(f"{core} is not instrumented")


if __name__ == "__main__":
    check_core()
    os.environ["LD_PRELOAD"] = " ".join(map(library, ("libasan.so", "libubsan.so")))
    # Python never frees all it has; SIGBUS is the core's own business.
    os.environ["ASAN_OPTIONS"] = "detect_leaks=0:handle_sigbus=0"
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
