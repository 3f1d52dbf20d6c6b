# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Fixtures of the device tests."""

from collections.abc import Callable, Iterator

import pytest

from vhost import Device

from .rig import Rig


@pytest.fixture
def rig() -> Iterator[Callable[[Device], Rig]]:
    """Makes a :class:`Rig` for a device, which is closed after the test."""
    rigs: list[Rig] = []

    def make(device: Device) -> Rig:
        rigs.append(Rig(device))
        return rigs[-1]

    yield make
    for made in rigs:
        made.queue.close()
        made.device.close()
