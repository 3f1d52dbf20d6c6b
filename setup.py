# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The C core and the tag of its wheel; everything else is in pyproject.toml."""

import os
import sysconfig
import zlib

from setuptools import setup

# cffi builds against the limited API except on free-threaded interpreters; the wheel's tag has to follow.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

options = {"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {}
if flags := os.environ.get("VHOST_CFLAGS"):
    # What was compiled with other flags looks up to date, and is not the same.
    options["build"] = {"build_base": f"build/flags-{zlib.crc32(flags.encode()):08x}"}

setup(cffi_modules=["csrc/build.py:ffi"], options=options)
