# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Which implementation of guest memory this installation has: read once, from installed metadata.

Knows the entry-point group ``vhost.mem`` and nothing about mapping. No entry means the unix build, one entry
means that one, more are an error. Nothing here chooses, tries or falls back.
"""

import os
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ("GROUP", "SELECTED", "TARGET", "require")

GROUP: Final = "vhost.mem"


def _any() -> bool:
    # Whether a distribution may register in the group. importlib.metadata knows, but takes long to load: it
    # is asked only if one does, or where distributions may be that are not seen here.
    if any(finder is not PathFinder and hasattr(finder, "find_distributions") for finder in sys.meta_path):
        return True
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except NotADirectoryError:
            return True  # an archive
        except OSError:
            continue
        if folder.lower().endswith(".egg"):
            return True
        for name in names:
            if name.lower().endswith((".dist-info", ".egg-info")) and _registers(os.path.join(folder, name)):
                return True
    return False


def _registers(info: str) -> bool:
    try:
        with open(os.path.join(info, "entry_points.txt"), "rb", buffering=0) as file:
            return f"[{GROUP}]".encode() in file.read()
    except OSError:
        return False


def _find() -> "EntryPoint | None":
    if not _any():
        return None
    from importlib.metadata import entry_points

    # One distribution can be seen twice, through two path entries; equal entries are one.
    found = sorted(set(entry_points(group=GROUP)))
    if len(found) > 1:
        names = " and ".join(
            f"{entry.name} ({entry.value}, from {entry.dist.name if entry.dist else 'no distribution'})"
            for entry in found
        )
        raise ImportError(
            f"several guest memory implementations are installed: {names}; "
            f"vhost maps guest memory in exactly one way, so uninstall all but one"
        )
    return found[0] if found else None


_entry = _find()

#: Name of the implementation: ``"unix"``, ``"xen"``, or what a third distribution registered.
SELECTED: Final[str] = _entry.name if _entry else "unix"
#: Where it is, as ``module:class``.
TARGET: Final[str] = _entry.value if _entry else "vhost.mem.unix:UnixMemory"


def require(name: str) -> None:
    """Refuse the import of an implementation that is not this installation's.

    :raises ImportError: another implementation is selected.
    """
    if name != SELECTED:
        how = "pip uninstall vhost-xen" if name == "unix" else f"pip install 'vhost[{name}]'"
        raise ImportError(
            f"this installation of vhost maps guest memory with {SELECTED!r}, so {name!r} is not available; "
            f"to change the build: {how}"
        )
