# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The version of this package, the same as in pyproject.toml, and which build of it is installed."""

__all__ = ("__version__", "describe")

__version__ = "0.1.0"


def describe() -> str:
    """Version and build in one line, as ``vhost --version`` prints it.

    ``core`` is the ABI the C core was built for: ``abi3``, or that of one interpreter.

    :raises ImportError: the installation is incomplete; see the message.
    """
    from vhost import _core, mem

    # _core.abi3.so, _core.cpython-314t-x86_64-linux-gnu.so
    core = _core.__file__.rpartition("/")[2].split(".")[1]
    return f"vhost {__version__} (memory: {mem.SELECTED}, core: {core})"
