# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A device of ours behind a socket, for the build that maps files."""

import socket
from collections.abc import Iterator

import pytest

from tests.frontend.served import Reverse, served


@pytest.fixture
def device() -> Reverse:
    return Reverse()


@pytest.fixture
def backend(no_leaks: None, unix_build: None, device: Reverse) -> Iterator[socket.socket]:
    """A connection to a backend that serves `device`, and offers all it can."""
    with served(device, "+iommu,+indirect") as sock:
        yield sock
