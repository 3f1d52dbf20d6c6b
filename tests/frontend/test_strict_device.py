# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Backends that take the specification at its word where others let things pass."""

import os
from dataclasses import replace

import pytest

import vhost
from tests.frontend.fake import FEATURES, PROTOCOL, Fake
from vhost.frontend.ram import GUEST_BASE, USER_BASE
from vhost.protocol import (
    GetInflightFd,
    Inflight,
    ProtocolFeature,
    Request,
    SetInflightFd,
    SetVringAddr,
    SetVringKick,
    VirtioFeature,
    VringFlag,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


def only_the_flag(fake: Fake, request: Request) -> None:
    """On a ring that runs, only the flag that says whether it is logged may change."""
    new = request.message
    assert isinstance(new, SetVringAddr)
    if SetVringKick in fake.fds and replace(new, flags=0) != replace(fake.address[new.index], flags=0):
        fake.ack(request, 16)
    else:
        fake.usual(request)


@pytest.mark.parametrize("regions", [1, 3])
def test_the_log_address_is_there_from_the_start(regions: int) -> None:
    with (
        Fake(
            features=FEATURES | VirtioFeature.LOG_ALL,
            protocol=PROTOCOL | ProtocolFeature.LOG_SHMFD,
            script={SetVringAddr: only_the_flag},
        ) as fake,
        vhost.connect(fake.peer, regions=regions) as device,
    ):
        flags = [fake.address[0].flags]
        for change in (device.log_start, device.log_stop, device.log_start):
            change()
            flags.append(fake.address[0].flags)
        assert flags == [0, VringFlag.LOG, 0, VringFlag.LOG]
        assert fake.address[0].log == fake.address[0].used - USER_BASE + GUEST_BASE


@pytest.mark.parametrize("described", [(0, 0), (2, 0), (0, 64), (2, 64)])
def test_an_inflight_region_that_is_described_by_its_size(described: tuple[int, int]) -> None:
    """The numbers of queues and entries may be left 0: they are those that were asked for."""
    size, offset = 1 << 14, 1 << 12

    def describe(fake: Fake, request: Request) -> None:
        fd = os.memfd_create("inflight")
        os.ftruncate(fd, offset + size)
        fake.reply(request, Inflight(size, offset, *described), [fd])
        os.close(fd)

    def take(fake: Fake, request: Request) -> None:
        os.close(request.take_fd())
        fake.ack(request)

    with (
        Fake(
            protocol=PROTOCOL | ProtocolFeature.INFLIGHT_SHMFD,
            queues=2,
            script={GetInflightFd: describe, SetInflightFd: take},
        ) as fake,
        vhost.connect(fake.peer, queues=2, queue_size=64, inflight=True),
    ):
        assert SetInflightFd(size, offset, 2, 64) in fake.seen
