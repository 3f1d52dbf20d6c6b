# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a frontend says to backends of different abilities, and in which order."""

import asyncio
import socket
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

import vhost
from tests.frontend.fake import FEATURES, PROTOCOL, Fake
from vhost.errors import LocalProtocolError
from vhost.frontend import AsyncFrontend
from vhost.frontend.negotiate import Options
from vhost.frontend.ram import GUEST_BASE, USER_BASE
from vhost.frontend.session import Session
from vhost.frontend.wait import wait
from vhost.protocol import (
    AddMemReg,
    GetFeatures,
    GetMaxMemSlots,
    GetProtocolFeatures,
    GetQueueNum,
    MemoryRegion,
    ProtocolFeature,
    SetFeatures,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringErr,
    SetVringKick,
    SetVringNum,
    VirtioFeature,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

RING = [SetVringNum, SetVringBase, SetVringAddr, SetVringErr, SetVringCall, SetVringKick]


def test_all_that_is_offered() -> None:
    with Fake(queues=2) as fake, vhost.connect(fake.peer, queues=2, ram_size=1 << 20) as device:
        assert [type(message) for message in fake.seen] == [
            GetFeatures,
            GetProtocolFeatures,
            SetProtocolFeatures,
            SetOwner,
            GetQueueNum,
            SetFeatures,
            SetMemTable,
            *RING,
            SetVringEnable,
            *RING,
            SetVringEnable,
        ]
        assert SetMemTable((MemoryRegion(GUEST_BASE, 1 << 20, USER_BASE, 0),)) in fake.seen
        assert SetVringNum(1, 128) in fake.seen
        assert SetVringEnable(1, 1) in fake.seen
        assert (device.features, device.protocol_features) == (FEATURES, PROTOCOL)
        assert device.num_queues == 2
        # Every message that is not answered anyway is acknowledged, from SET_PROTOCOL_FEATURES on.
        asked = dict(zip(map(type, fake.seen), fake.acks_asked, strict=True))
        assert all(asked[kind] for kind in (SetOwner, SetFeatures, SetMemTable, SetVringEnable, *RING))


def test_each_ring_has_its_own_memory() -> None:
    with Fake(queues=2) as fake, vhost.connect(fake.peer, queues=2, queue_size=8):
        parts = []
        for address in fake.address.values():
            parts += [
                (address.descriptor, 16 * 8, 16),
                (address.available, 6 + 2 * 8, 2),
                (address.used, 6 + 8 * 8, 4),
            ]
    assert all(start % align == 0 for start, _, align in parts)
    spans = sorted((start, start + size) for start, size, _ in parts)
    assert spans[0][0] >= USER_BASE
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_without_protocol_features() -> None:
    with Fake(features=VirtioFeature.VERSION_1) as fake, vhost.connect(fake.peer) as device:
        assert [type(message) for message in fake.seen] == [
            GetFeatures,
            SetOwner,
            SetFeatures,
            SetMemTable,
            *RING,
            GetFeatures,
        ]
        assert device.protocol_features == device.offered_protocol_features == 0
        assert device.num_queues is None
        assert not any(fake.acks_asked)


def test_without_reply_ack_one_question_shows_that_all_went_well() -> None:
    with Fake(protocol=ProtocolFeature.MQ) as fake, vhost.connect(fake.peer) as device:
        assert type(fake.seen[-1]) is GetFeatures
        assert not any(fake.acks_asked)
        with pytest.raises(LocalProtocolError, match=r"GET_CONFIG.*CONFIG.* not negotiated"):
            device.config(0, 8)
        device.stop(0)  # that was no harm


def test_without_mq() -> None:
    with (
        Fake(protocol=ProtocolFeature.REPLY_ACK) as fake,
        vhost.connect(fake.peer, queues=3) as device,
    ):
        assert GetQueueNum() not in fake.seen
        assert device.num_queues is None
        assert SetVringEnable(2, 1) in fake.seen


def test_what_cannot_be_driven_is_not_acknowledged() -> None:
    with (
        Fake(
            features=FEATURES | VirtioFeature.RING_PACKED | VirtioFeature.LOG_ALL | 1 << 5 | 1 << 50
        ) as fake,
        vhost.connect(fake.peer) as device,
    ):
        assert device.features == FEATURES | 1 << 5 | 1 << 50
        assert device.offered_features & VirtioFeature.RING_PACKED
    with (
        Fake(protocol=PROTOCOL | ProtocolFeature.STATUS | ProtocolFeature.INFLIGHT_SHMFD) as fake,
        vhost.connect(fake.peer) as device,
    ):
        assert device.protocol_features == PROTOCOL


def test_ring_features_can_be_declined() -> None:
    offered = FEATURES | VirtioFeature.RING_INDIRECT_DESC
    with Fake(features=offered) as fake, vhost.connect(fake.peer, event_idx=False, indirect=False) as device:
        assert device.features == VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES


def test_exact_features() -> None:
    with (
        Fake() as fake,
        vhost.connect(fake.peer, features=VirtioFeature.VERSION_1, protocol_features=0) as device,
    ):
        assert device.features == VirtioFeature.VERSION_1
        assert SetProtocolFeatures(0) in fake.seen
        # Bit 30 is not acknowledged: SET_FEATURES has enabled the rings, SET_VRING_ENABLE would be refused.
        assert not any(isinstance(message, SetVringEnable) for message in fake.seen)
        assert not fake.rejected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"features": FEATURES | 1 << 34}, "features 0x400000000 wanted"),
        ({"protocol_features": PROTOCOL | 1 << 12}, "protocol features 0x1000 wanted"),
        ({"queues": 2}, "2 queues wanted, but the backend has 1"),
        ({"slots": True}, "1 regions .* CONFIGURE_MEM_SLOTS is not negotiated; leave slots= out"),
        ({"regions": 9}, "9 regions .* CONFIGURE_MEM_SLOTS is not negotiated.* at most 8"),
    ],
)
def test_wanting_what_is_not_offered(wanted: dict[str, Any], message: str) -> None:
    with Fake() as fake, pytest.raises(LocalProtocolError, match=message):
        vhost.connect(fake.peer, **wanted)


def test_a_backend_that_counts_pairs() -> None:
    with Fake() as fake, vhost.connect(fake.peer, queues=2, quirks="queue-num-pairs") as device:
        assert device.num_queues == 2
        assert SetVringEnable(1, 1) in fake.seen
    with Fake() as fake, pytest.raises(LocalProtocolError, match="3 queues wanted, but the backend has 2"):
        vhost.connect(fake.peer, queues=3, quirks="queue-num-pairs")


def test_protocol_features_of_a_backend_that_has_none() -> None:
    with Fake(features=VirtioFeature.VERSION_1) as fake, pytest.raises(LocalProtocolError, match="bit 30"):
        vhost.connect(fake.peer, protocol_features=ProtocolFeature.MQ)


def test_memory_in_a_slot() -> None:
    with (
        Fake(protocol=PROTOCOL | ProtocolFeature.CONFIGURE_MEM_SLOTS) as fake,
        vhost.connect(fake.peer, slots=True, ram_size=1 << 20),
    ):
        assert AddMemReg(MemoryRegion(GUEST_BASE, 1 << 20, USER_BASE, 0)) in fake.seen
        assert SetMemTable not in map(type, fake.seen)


def test_memory_in_regions() -> None:
    with Fake() as fake, vhost.connect(fake.peer, regions=8, ram_size=1 << 20) as device:
        (table,) = (message for message in fake.seen if isinstance(message, SetMemTable))
        assert [region.guest_addr for region in table.regions] == [gpa for gpa, _ in device.ram.regions()]
        assert {region.size for region in table.regions} == {1 << 17}
        assert {region.user_addr - region.guest_addr for region in table.regions} == {USER_BASE - GUEST_BASE}


def test_more_regions_than_a_table_holds() -> None:
    with (
        Fake(protocol=PROTOCOL | ProtocolFeature.CONFIGURE_MEM_SLOTS) as fake,
        vhost.connect(fake.peer, regions=9, ram_size=9 << 20) as device,
    ):
        added = [message.region for message in fake.seen if isinstance(message, AddMemReg)]
        assert [(region.guest_addr, region.mmap_offset) for region in added] == device.ram.regions()
        assert SetMemTable not in map(type, fake.seen)


@pytest.mark.parametrize("wanted", [{"slots": True, "regions": 3}, {"regions": 9}])
def test_as_many_regions_as_there_are_slots(wanted: dict[str, Any]) -> None:
    protocol = PROTOCOL | ProtocolFeature.CONFIGURE_MEM_SLOTS
    regions = wanted["regions"]
    with Fake(protocol=protocol, slots=regions) as fake, vhost.connect(fake.peer, **wanted):
        assert fake.seen.index(GetMaxMemSlots()) < [type(message) for message in fake.seen].index(AddMemReg)
    with (
        Fake(protocol=protocol, slots=regions - 1) as fake,
        pytest.raises(LocalProtocolError, match=rf"{regions} regions, .* slots for {regions - 1} "),
    ):
        vhost.connect(fake.peer, **wanted)
    assert AddMemReg not in map(type, fake.seen)


def test_a_table_needs_no_slots() -> None:
    with (
        Fake(protocol=PROTOCOL | ProtocolFeature.CONFIGURE_MEM_SLOTS, slots=0) as fake,
        vhost.connect(fake.peer, regions=8),
    ):
        assert SetMemTable in map(type, fake.seen)


def test_bits_to_avoid() -> None:
    options = Options(avoid=VirtioFeature.RING_EVENT_IDX, ram_size=1 << 20)
    with Fake() as fake:
        session = Session(fake.peer, options)
        wait(session.open(), 10)
        assert session.negotiated.features == FEATURES & ~VirtioFeature.RING_EVENT_IDX
        session.close()


@pytest.mark.parametrize(
    "wrong", [{"queue_size": 100}, {"queue_size": 0}, {"queues": 257}, {"ram_size": 0}, {"regions": 0}]
)
def test_arguments_that_make_no_sense_cost_nothing(wrong: dict[str, Any]) -> None:
    with Fake() as fake, pytest.raises(ValueError):
        vhost.connect(fake.peer, **wrong)
    assert fake.seen == []


def test_ram_that_does_not_hold_the_ring() -> None:
    with Fake() as fake, pytest.raises(MemoryError, match="ram_size=4096"):
        vhost.connect(fake.peer, ram_size=4096, queue_size=1024)


def in_a_loop(target: socket.socket, **options: Any) -> AsyncFrontend:
    return asyncio.run(vhost.connect_async(target, **options))


@pytest.mark.parametrize("connect", [vhost.connect, in_a_loop], ids=["blocking", "asyncio"])
@pytest.mark.parametrize("quirks", ["shmem-bit-21", "-many-regions,shmem_bit_21", "", "-shmem-bit-21"])
def test_quirks_of_a_backend(quirks: str, connect: Callable[..., Any]) -> None:
    on = quirks.endswith("21") and not quirks.startswith("-shmem")
    with Fake(protocol=PROTOCOL | ProtocolFeature.GPA_ADDRESSES) as fake:
        device = connect(fake.peer, quirks=quirks)
        read = ProtocolFeature.SHMEM if on else ProtocolFeature.GPA_ADDRESSES
        assert device.offered_protocol_features == PROTOCOL | read
        device.close()
