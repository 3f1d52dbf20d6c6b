# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The version of this package, the same as in pyproject.toml."""

__all__ = ("__version__",)

__version__ = "0.1.0"
