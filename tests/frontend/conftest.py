# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A device of ours behind a socket, for the build that maps files."""

import socket
from collections.abc import Iterator

import pytest

from tests.frontend.served import Reverse, served
from vhost import mem


@pytest.fixture
def files_are_mapped() -> None:
    """Skips where a backend of this installation cannot map the memory that the frontend shares."""
    if mem.SELECTED != "unix":
        pytest.skip(f"the {mem.SELECTED} build maps memory of Xen guests only, a frontend here has none")


@pytest.fixture
def device() -> Reverse:
    return Reverse()


@pytest.fixture
def backend(no_leaks: None, files_are_mapped: None, device: Reverse) -> Iterator[socket.socket]:
    """A connection to a backend that serves `device`."""
    with served(device) as sock:
        yield sock
