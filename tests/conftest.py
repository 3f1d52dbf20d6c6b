# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What all tests share: which build of guest memory they run on, and fixtures that find leaks.

The installation decides the build, nothing here does. ``VHOST_EXPECT_MEM`` only says which one was meant to
be tested, and the run stops when it is another. The Xen build runs on stand-ins of the Xen libraries, unless
``VHOST_XEN=1`` says that this is a Xen domain.
"""

import os
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

from .xen.standin import fakes, frames

REAL_XEN = os.environ.get("VHOST_XEN") == "1"
# Importing the Xen build loads the libraries, so they are made before. What is installed is read directly
# here: vhost.mem is not imported yet.
FAKE_XEN = "xen" in entry_points(group="vhost.mem").names and not REAL_XEN

_folder = tempfile.TemporaryDirectory(prefix="vhost-fake-xen-")
if FAKE_XEN:
    fakes.build(Path(_folder.name))
    fakes.load(Path(_folder.name))

from vhost import mem, version  # noqa: E402 - the stand-ins come first

if FAKE_XEN:
    installed_map = frames.share_files()

# A shell starts what runs in the background with interrupts ignored, and daemons would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine's load than about the code, and to take longer the
# first time than the second is no contradiction.
# There is no Hypothesis in a dom0, and nothing there that needs it.
if find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    settings.register_profile("vhost", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("vhost")

collect_ignore = [other for other in ("unix", "xen") if other != mem.SELECTED]
# The former drive the stand-ins, the latter need a running Xen.
collect_ignore.append("xen/standin" if REAL_XEN else "xen/real")


def pytest_configure() -> None:
    expected = os.environ.get("VHOST_EXPECT_MEM")
    if expected not in (None, "", mem.SELECTED):
        pytest.exit(
            f"VHOST_EXPECT_MEM={expected} is what was to be tested, but this is {version.describe()}",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


def pytest_unconfigure() -> None:
    _folder.cleanup()


def pytest_report_header() -> str:
    xen = ", fake Xen libraries" if FAKE_XEN else ""
    return f"{version.describe()}{xen}, from {Path(mem.__file__).parents[1]}"


def _open_fds() -> Counter[str]:
    # What the descriptors refer to, without the one that reads the directory. Kinds rather than numbers: a
    # descriptor that is closed and opened again is no leak.
    found: Counter[str] = Counter()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = str(fd.readlink())
        except FileNotFoundError:
            continue
        found[re.sub(r":\[\d+\]", "", target)] += 1
    return found


def _mappings(name: str = "/memfd:") -> list[str]:
    # Lines of /proc/self/maps whose file name starts so.
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [
        line for line in lines if line.split(maxsplit=5)[5:] and line.split(maxsplit=5)[5].startswith(name)
    ]


@pytest.fixture
def unix_build() -> None:
    """For tests whose front-end passes guest memory as files, by themselves or in their fixtures.

    The Xen build takes no such memory: there they are not collected. Its own is what tests/xen are about.
    """


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if mem.SELECTED != "unix":
        elsewhere = {item for item in items if "unix_build" in getattr(item, "fixturenames", ())}
        items[:] = [item for item in items if item not in elsewhere]
        config.hook.pytest_deselected(items=[*elsewhere])


@pytest.fixture
def open_fds() -> Callable[[], Counter[str]]:
    """A function that counts this process's descriptors by what they refer to."""
    return _open_fds


@pytest.fixture
def mappings() -> Callable[..., list[str]]:
    """A function that lists this process's mappings of files with names that start so, memfds by default."""
    return _mappings


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails the test when it leaves a descriptor open or a memfd mapped."""
    fds, maps = _open_fds(), len(_mappings())
    yield
    assert _open_fds() - fds == Counter()
    assert len(_mappings()) <= maps
