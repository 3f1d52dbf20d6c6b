# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest's memory as the stand-ins of the Xen libraries show it; every test ends with nothing mapped."""

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import conftest
from vhost.mem.xen import XenMemory

from . import fakes
from . import frames as standin
from .frames import Frames

PAGES = 256


@pytest.fixture(autouse=True)
def _as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The Xen build itself, without the files that tests elsewhere share with it.
    monkeypatch.setattr(XenMemory, "_map", conftest.installed_map)


def _left(counts: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    # What a failed test's frames hold in cycles is no leak; collecting takes long, and is rarely needed.
    if any(counts()):
        gc.collect()
    return counts()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[int]:
    """A file that is the guest's memory: frame n, and grant reference n, is its page n."""
    fd = os.open(tmp_path / "xen-guest", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(fd, PAGES * 4096)
    yield fd
    os.close(fd)


@pytest.fixture
def gnttab(guest: int) -> Iterator[fakes.FakeGnttab]:
    """The grant table of domain 5, all pages granted; nothing may be left mapped."""
    fake = fakes.gnttab()
    ctypes.memset(ctypes.byref(fake), 0, ctypes.sizeof(fake))
    fake.memory, fake.granted, fake.domid = guest, PAGES, 5
    yield fake
    left = _left(lambda: (fake.pages, fake.maps - fake.unmaps, fake.bad, fake.opened - fake.closed))
    fake.memory = -1
    assert left == (0, 0, 0, 0), "pages mapped, mappings, wrong unmaps, handles open"


@pytest.fixture
def frames(guest: int, tmp_path: Path) -> Iterator[Frames]:
    """The memory of domain 5, for foreign mapping; nothing may be left mapped."""
    # The same file by another name: that is how its pages are told from those mapped by grants.
    path = tmp_path / standin.NAME
    os.link(tmp_path / "xen-guest", path)
    with open(path, "r+b") as file:
        standin.state = state = Frames(memory=file.fileno(), domid=5)
        yield state
        left = _left(lambda: (state.pages, state.open))
        standin.state = Frames()
    assert left == (0, 0), "pages mapped, devices open"


@pytest.fixture
def foreign(guest: int) -> Iterator[fakes.FakeForeign]:
    """The same for who uses the library; nothing may be left mapped."""
    fake = fakes.foreign()
    ctypes.memset(ctypes.byref(fake), 0, ctypes.sizeof(fake))
    fake.memory, fake.domid = guest, 5
    yield fake
    left = _left(lambda: (fake.pages, fake.maps - fake.unmaps, fake.opened - fake.closed))
    fake.memory = -1
    assert left == (0, 0, 0), "pages mapped, mappings, handles open"
