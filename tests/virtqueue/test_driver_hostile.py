# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices that write what they like to the ring: the driver says so, and believes nothing."""

import random
import struct
from typing import Any

import pytest

from tests.virtqueue.model import PackedDevice, Rig, SplitDevice, Taken
from vhost.errors import VirtqueueError

SPLIT: dict[str, Any] = {}
PACKED: dict[str, Any] = {"packed": True}
KINDS = [
    pytest.param(kind | {"in_order": in_order}, id=f"{name}{'-in-order' if in_order else ''}")
    for kind, name in ((SPLIT, "split"), ({"big_endian": True}, "big-endian"), (PACKED, "packed"))
    for in_order in (False, True)
]


def offer(rig: Rig, *rooms: int) -> list[int]:
    names = [rig.driver.add([(0, 8)], [(64, room)] if room else []) for room in rooms]
    rig.driver.publish()
    return names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [1, 7, 8, 0xFFFF])
def test_an_id_that_is_not_in_flight(kind: dict[str, Any], name: int) -> None:
    rig = Rig(8, **kind)
    (one,) = offer(rig, 4)
    assert one != name
    rig.device.give(Taken(name), 0)
    with pytest.raises(VirtqueueError, match="not in flight"):
        rig.driver.poll()


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_that_was_not_shown(kind: dict[str, Any]) -> None:
    rig = Rig(8, **kind)
    offer(rig, 4)
    hidden = rig.driver.add([], [(0, 4)])
    rig.device.give(Taken(hidden), 0)
    with pytest.raises(VirtqueueError, match="not in flight"):
        rig.driver.poll()


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_twice(kind: dict[str, Any]) -> None:
    rig = Rig(8, **kind)
    one, _ = offer(rig, 4, 4)
    chain = rig.device.take()
    assert chain is not None
    rig.device.give(chain, 0)
    rig.device.give(chain, 0)
    with pytest.raises(VirtqueueError, match="not in flight"):
        rig.driver.poll()
    assert chain.id == one


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_was_room_for(kind: dict[str, Any]) -> None:
    for room, says, wrong in ((16, 16, False), (16, 17, True), (0, 1, True), (16, 2**32 - 1, True)):
        rig = Rig(8, check=True, **kind)
        (name,) = offer(rig, room)
        chain = rig.device.take()
        assert chain is not None
        rig.device.give(chain, says)
        if wrong:
            with pytest.raises(VirtqueueError, match="more bytes than there was room for"):
                rig.driver.poll()
        else:
            assert rig.driver.poll() == [(name, says)]
    careless = Rig(8, **kind)
    (name,) = offer(careless, 16)
    careless.device.give(Taken(name), 17)
    assert careless.driver.poll() == [(name, 17)]


@pytest.mark.parametrize("in_order", [False, True])
def test_a_used_index_that_runs_ahead(in_order: bool) -> None:
    rig = Rig(8, in_order=in_order)
    offer(rig, 4, 4)
    device = rig.device
    assert isinstance(device, SplitDevice)
    device.used = 3
    device.publish()
    with pytest.raises(VirtqueueError, match="more than it was given"):
        rig.driver.poll()


def test_a_batch_beyond_the_used_index() -> None:
    rig = Rig(8, in_order=True)
    names = offer(rig, 4, 4, 4)
    device = rig.device
    assert isinstance(device, SplitDevice)
    device.write(names[2], 0)
    device.used = 2
    device.publish()
    with pytest.raises(VirtqueueError, match="not in flight"):
        rig.driver.poll()


def test_links_and_indirect_tables_overwritten() -> None:
    for kind in (SPLIT, PACKED):
        rig = Rig(8, table_len=4, **kind)
        for _ in range(3):
            names = [
                rig.driver.add([(0, 1)] * 6, []),
                rig.driver.add([(0, 1)], [(9, 3)]),
            ]
            rig.driver.publish()
            chains = [chain for _ in names if (chain := rig.device.take())]
            if kind is SPLIT:
                rig.desc[:] = b"\xff" * len(rig.desc)
            rig.tables[:] = b"\xff" * len(rig.tables)
            for chain in chains:
                rig.device.give(chain, 0)
            assert [name for name, _ in rig.driver.poll()] == names
            assert rig.driver.free == 8


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_noise(kind: dict[str, Any]) -> None:
    """Random bytes all over the ring never get more back than was sent."""
    rng = random.Random(str(kind))
    errors = 0
    for _ in range(300):
        rig = Rig(8 if not kind.get("packed") else rng.randint(1, 9), event_idx=rng.random() < 0.5, **kind)
        sent: set[int] = set()
        for _ in range(20):
            while (name := rig.driver.add([(0, 1)], [])) >= 0:
                assert name not in sent
                sent.add(name)
                if rng.random() < 0.3:
                    break
            rig.driver.publish()
            for memory in (rig.desc, rig.avail, rig.used):
                if rng.random() < 0.7:
                    at = rng.randrange(len(memory) - 3)
                    memory[at : at + 4] = rng.choice(
                        [rng.randbytes(4), bytes(4), struct.pack("<I", rng.randrange(9))]
                    )
            if isinstance(rig.device, PackedDevice):
                at = rng.randrange(rig.size)
                flags = rng.choice([0, 1 << 7, 1 << 15, 1 << 7 | 1 << 15])
                struct.pack_into("<HH", rig.desc, 16 * at + 12, rng.randrange(rig.size + 1), flags)
            rig.driver.calls_on()
            try:
                for name, _ in rig.driver.poll():
                    sent.remove(name)
            except VirtqueueError:
                errors += 1
                break
    assert errors
