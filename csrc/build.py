# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Builds vhost._core, the C core, as a cffi API module for the limited ABI.

``VHOST_CFLAGS`` adds compiler flags, for warnings as errors and sanitizers in CI.
"""

import os
import shlex
from pathlib import Path

from cffi import FFI

# The build backend runs this file by exec(), with the project's root as the working directory.
HERE = Path("csrc")
# In the order in which they need each other; csrc/core.h includes them in the same, without sys.
API = (
    "mem",
    "guard",
    "queue",
    "path",
    "data",
    "uring",
    "blk",
    "rng",
    "grants",
    "driver",
    "bench",
    "worker",
    "notifier",
    "stream",
    "net",
    "switch",
    "sys",
)
SOURCES = (
    "mem.c",
    "map.c",
    "guard.c",
    "walk.c",
    "miss.c",
    "pop.c",
    "push.c",
    "notify.c",
    "inflight.c",
    "log.c",
    "notifier.c",
    "path.c",
    "worker.c",
    "data.c",
    "blk.c",
    "blk_null.c",
    "blk_memory.c",
    "blk_file.c",
    "blk_uring.c",
    "uring.c",
    "rng.c",
    "grants.c",
    "driver.c",
    "driver_split.c",
    "driver_packed.c",
    "bench.c",
    "bench_script.c",
    "dirty.c",
    "stream.c",
    "net.c",
    "net_filter.c",
    "pcap.c",
    "tap.c",
    "switch.c",
)
# The last is ours, the others declare what sys.h names.
INCLUDES = (
    "<fcntl.h>",
    "<linux/if_tun.h>",
    "<sys/ioctl.h>",
    "<sys/mman.h>",
    "<sys/stat.h>",
    "<sys/vfs.h>",
    '"core.h"',
)

ffi = FFI()
for name in API:
    ffi.cdef((HERE / "api" / f"{name}.h").read_text())
extra = shlex.split(os.environ.get("VHOST_CFLAGS", ""))
ffi.set_source(
    "vhost._core",
    "".join(f"#include {name}\n" for name in INCLUDES),
    sources=[str(HERE / name) for name in SOURCES],
    include_dirs=[str(HERE)],
    depends=[str(path) for path in sorted(HERE.rglob("*.h"))],
    # Files are larger than 2 GiB on every machine.
    define_macros=[("_FILE_OFFSET_BITS", "64")],
    extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden", *extra],
    extra_link_args=extra,
)
