# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Domains for the tests; each must be gone at the end, which it is not while anything of it is mapped.

And daemons to serve them, which are started once: to start takes longer than all that a test does with them.
"""

import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyxenctrl.control import Control
from pyxenctrl.devicemodel import DeviceModel
from pyxenctrl.domain import DomainKind, Emulation

from .puppet import Puppet
from .watch import Watch, watched

GONE_SECONDS = 10
IMAGE_BYTES = 64 << 20


@contextmanager
def gone_at_the_end(control: Control, puppet: Puppet) -> Iterator[Puppet]:
    """Destroys a puppet, and fails if it is held by a page that something still has mapped."""
    with puppet:
        yield puppet
    if control.info(puppet.domid) is not None:
        gc.collect()  # what a failed test's frames hold
    deadline = time.monotonic() + GONE_SECONDS
    while control.info(puppet.domid) is not None:
        assert time.monotonic() < deadline, f"domain {puppet.domid} is still there: a page of it is mapped"
        time.sleep(0.01)


@pytest.fixture
def control() -> Iterator[Control]:
    """A control handle."""
    with Control() as control:
        yield control


@pytest.fixture(params=DomainKind, ids=lambda kind: kind.value)
def puppet(control: Control, request: pytest.FixtureRequest) -> Iterator[Puppet]:
    """A puppet domain of 256 pages, of each kind."""
    with gone_at_the_end(control, Puppet(control, request.param)) as puppet:
        yield puppet


@pytest.fixture
def hvm(control: Control) -> Iterator[Puppet]:
    """A puppet that can run code."""
    with gone_at_the_end(control, Puppet(control, DomainKind.HVM)) as puppet:
        yield puppet


@pytest.fixture
def pv(control: Control) -> Iterator[Puppet]:
    """A puppet whose frames are not its pages' numbers."""
    with gone_at_the_end(control, Puppet(control, DomainKind.PV)) as puppet:
        yield puppet


@pytest.fixture
def model() -> Iterator[DeviceModel]:
    """A device model handle."""
    with DeviceModel() as model:
        yield model


@pytest.fixture
def pc(control: Control) -> Iterator[Puppet]:
    """A puppet with the interrupt controllers and the clock of a PC."""
    with gone_at_the_end(control, Puppet(control, DomainKind.HVM, emulation=Emulation.PC)) as puppet:
        yield puppet


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder for sockets and images, for whoever they are; its path is short, as a socket's must be."""
    with tempfile.TemporaryDirectory(prefix="vhost-") as path:
        Path(path).chmod(0o777)
        yield Path(path)


@pytest.fixture(scope="session")
def image(folder: Path) -> Path:
    """The image of the disk."""
    path = folder / "disk.img"
    with open(path, "wb") as file:
        file.truncate(IMAGE_BYTES)
    return path


@pytest.fixture(scope="session")
def running_rng(folder: Path) -> Iterator[Watch]:
    """A random number generator, for all tests."""
    with watched("vhost-rng", work=folder) as watch:
        yield watch


@pytest.fixture(scope="session")
def running_blk(folder: Path, image: Path) -> Iterator[Watch]:
    """A disk, for all tests."""
    with watched("vhost-blk", "--blk-file", image, "--serial", "a disk", work=folder) as watch:
        yield watch


@pytest.fixture
def rng(running_rng: Watch) -> Iterator[Watch]:
    """A random number generator; it must be idle at the end."""
    with running_rng.test() as watch:
        yield watch


@pytest.fixture
def blk(running_blk: Watch) -> Iterator[Watch]:
    """A disk; it must be idle at the end."""
    with running_blk.test() as watch:
        yield watch
