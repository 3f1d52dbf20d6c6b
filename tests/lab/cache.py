# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The folder in which the lab keeps what it downloaded and made: ``$VHOST_LAB_CACHE``, else ``vhost-lab``
among the user's caches. Everything in it can be removed at any time and comes back when wanted.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ("expire", "folder", "kept", "locked")


def folder() -> Path:
    """The cache folder; made if absent."""
    path = os.environ.get("VHOST_LAB_CACHE")
    if not path:
        path = os.path.join(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vhost-lab")  # noqa: PTH118
    cache = Path(path).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other lab runs on this machine away from ``path`` meanwhile (they wait)."""
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """``folder()/name``. If it is not there, ``make`` fills a new folder that then takes the name: what
    exists under the name is complete. Its time of modification is that of its last use.
    """
    place = folder() / name
    with locked(place):
        if not place.exists():
            draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=place.parent))
            try:
                make(draft)
                draft.chmod(0o755)
                draft.rename(place)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
        os.utime(place)
    return place


def expire(names: str, seconds: float) -> None:
    """Removes the folders whose names fit the pattern ``names`` and that nobody has used for so long."""
    for place in folder().glob(names):
        if place.is_dir():
            with locked(place):
                if place.exists() and place.stat().st_mtime < time.time() - seconds:
                    shutil.rmtree(place)
