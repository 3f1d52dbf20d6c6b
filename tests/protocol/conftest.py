# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Every test of the protocol leaves as many descriptors open as it found."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_leaks(open_fds: Callable[[], Counter[str]]) -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before
