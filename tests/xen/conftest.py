# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest's memory as the stand-ins of the Xen libraries show it; every test ends with nothing mapped."""

import ctypes
import gc
import os
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import installed_map
from vhost.mem.xen import XenMemory

from . import fakes

PAGES = 256


@pytest.fixture(autouse=True)
def _as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The Xen build itself, without the files that tests elsewhere share with it.
    monkeypatch.setattr(XenMemory, "_map", installed_map)


def _left(counts: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    # What a failed test's frames hold in cycles is no leak; collecting takes long, and is rarely needed.
    if any(counts()):
        gc.collect()
    return counts()


@pytest.fixture
def guest() -> Iterator[int]:
    """A file that is the guest's memory: frame n, and grant reference n, is its page n."""
    fd = os.memfd_create("xen-guest")
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
def foreign(guest: int) -> Iterator[fakes.FakeForeign]:
    """The memory of domain 5, for foreign mapping; nothing may be left mapped."""
    fake = fakes.foreign()
    ctypes.memset(ctypes.byref(fake), 0, ctypes.sizeof(fake))
    fake.memory, fake.domid = guest, 5
    yield fake
    left = _left(lambda: (fake.pages, fake.maps - fake.unmaps, fake.opened - fake.closed))
    fake.memory = -1
    assert left == (0, 0, 0), "pages mapped, mappings, handles open"
