# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The C core and the tag of its wheel; everything else is in pyproject.toml."""

import sysconfig

from setuptools import setup

# cffi builds against the limited API except on free-threaded interpreters; the wheel's tag has to follow.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["csrc/build.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {},
)
