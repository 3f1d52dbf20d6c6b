# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Fixtures of the tests that run programs."""

from pathlib import Path

import pytest


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 8 MiB."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 << 20))
    return path
