# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Fixtures of the tests that run programs."""

from pathlib import Path

import pytest

from vhost.mem import SELECTED


@pytest.fixture
def unix_build() -> None:
    """For tests in which a front-end shares memory with a daemon."""
    if SELECTED != "unix":
        pytest.skip("guest memory of a Xen guest needs a Xen guest")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 8 MiB."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 << 20))
    return path
