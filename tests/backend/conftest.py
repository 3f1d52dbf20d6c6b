# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A server with the echo device that offers all it can, once with threads and once with an event loop."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backend.echo import Echo
from tests.backend.peer import footprint
from tests.backend.serving import Serving


@pytest.fixture(params=["threads", "asyncio"])
def server(unix_build: None, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    before = footprint()
    with Serving(Echo(), request.param, tmp_path / "socket", features="+iommu,+indirect") as serving:
        yield serving
    assert footprint() == before
