# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Every kind of ring as its driver uses it, against a device that goes by the bytes alone."""

import random
from typing import Any

import pytest

from tests.virtqueue.model import PackedDevice, Rig, SplitDevice, Taken
from vhost.virtqueue import RingLayout

KINDS = [
    pytest.param({}, 4, id="split-4"),
    pytest.param({}, 64, id="split-64"),
    pytest.param({"big_endian": True}, 16, id="big-endian-16"),
    pytest.param({"packed": True}, 1, id="packed-1"),
    pytest.param({"packed": True}, 7, id="packed-7"),
    pytest.param({"packed": True}, 64, id="packed-64"),
    pytest.param({"packed": True}, 1000, id="packed-1000"),
]


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("in_order", [False, True], ids=["any-order", "in-order"])
@pytest.mark.parametrize("table_len", [0, 6], ids=["direct", "indirect"])
@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_random_traffic(
    kind: dict[str, Any], size: int, table_len: int, in_order: bool, event_idx: bool
) -> None:
    """Nothing is lost, mixed up or left to wait for a notification that never comes."""
    rng = random.Random(f"{kind}{size}{table_len}{in_order}{event_idx}")
    rig = Rig(size, table_len=table_len, in_order=in_order, event_idx=event_idx, check=True, **kind)
    driver, device = rig.driver, rig.device
    flying: dict[int, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {}
    expected: list[tuple[int, int]] = []
    held: list[Taken] = []
    sent = answered = kicks = calls = 0
    device.kicks(True)
    device_sleeps, driver_sleeps = True, False
    while answered < 2000:
        # The driver, as long as it is awake.
        if not driver_sleeps or rng.random() < 0.1:
            added = 0
            while sent < 2000 and rng.random() < 0.8:
                n = rng.randint(1, min(8, size))
                pieces = [(rng.getrandbits(63), rng.randint(1, 1 << 20)) for _ in range(n)]
                cut = rng.randint(0, n)
                name = driver.add(pieces[:cut], pieces[cut:])
                if name < 0:
                    assert driver.free < n
                    break
                assert name not in flying
                flying[name] = (pieces[:cut], pieces[cut:])
                sent += 1
                added += 1
            if driver.publish():
                kicks += 1
                device_sleeps = False
            for got in driver.poll(rng.randint(1, 2 * size)):
                assert got == expected.pop(0)
                answered += 1
            driver_sleeps = not driver.calls_on()
        # The device, as long as it is.
        if not device_sleeps:
            device.kicks(False)
            while (chain := device.take()) is not None:
                assert (chain.readable, chain.writable) == flying[chain.id]
                held.append(chain)
            returned = slots = 0
            while held and rng.random() < 0.7:
                batch = (
                    held[: rng.randint(1, len(held))] if in_order else [held.pop(rng.randrange(len(held)))]
                )
                if in_order:
                    del held[: len(batch)]
                last = batch[-1]
                length = rng.randint(0, last.room)
                device.give(last, length, batch=batch)
                # Those that are not named are taken to have been written wholly.
                expected += [(one.id, one.room) for one in batch[:-1]] + [(last.id, length)]
                for one in batch:
                    del flying[one.id]
                returned += len(batch)
                slots += sum(one.slots for one in batch)
            passed = slots if isinstance(device, PackedDevice) else returned
            if returned and device.call_wanted(passed):
                calls += 1
                driver_sleeps = False
            if not held:
                device.kicks(True)
                device_sleeps = device.idle()
        assert not (driver_sleeps and device_sleeps and (expected or held)), "both sides sleep"
        if driver_sleeps and device_sleeps:
            driver_sleeps = False  # there is more to send
    assert not flying
    assert not expected
    assert driver.free == size
    assert kicks
    assert calls


def test_a_used_element_before_its_chain_is_shown() -> None:
    for options in ({}, {"packed": True}, {"in_order": True}, {"packed": True, "in_order": True}):
        rig = Rig(8, **options)
        one = rig.driver.add([(0, 1)], [])
        rig.driver.publish()
        two = rig.driver.add([(0, 1)], [])
        chain = rig.device.take()
        assert chain is not None
        assert chain.id == one != two
        assert rig.device.take() is None


def test_the_id_is_in_the_last_descriptor_of_a_packed_chain() -> None:
    rig = Rig(5, packed=True)
    rig.driver.add([(0, 1)], [])
    rig.driver.publish()
    first = rig.device.take()
    assert first is not None
    second = rig.driver.add([(1, 1), (2, 1)], [(3, 1)])
    rig.driver.publish()
    device = rig.device
    assert isinstance(device, PackedDevice)
    assert [name for _, _, name, _ in map(device._peek, range(1, 4))] == [0, 0, second]
    assert second != first.id


def test_ids_come_back_out_of_order_on_a_packed_ring() -> None:
    rig = Rig(6, packed=True, check=True)
    names = [rig.driver.add([(n, 1)] * (n + 1), []) for n in range(3)]
    rig.driver.publish()
    assert rig.driver.free == 0
    chains = [rig.device.take() for _ in range(3)]
    for n in (2, 0):
        chain = chains[n]
        assert chain is not None
        rig.device.give(chain, 0)
    assert rig.driver.poll() == [(names[2], 0), (names[0], 0)]
    assert rig.driver.free == 4
    # The next chain goes around the end of the ring, behind the one that is still in flight.
    assert rig.driver.add([(9, 1)] * 4, []) in (names[0], names[2])
    rig.driver.publish()
    chain = rig.device.take()
    assert chain is not None
    assert chain.slots == 4


def test_a_length_without_the_flag_means_nothing() -> None:
    rig = Rig(4, packed=True, check=True)
    name = rig.driver.add([(0, 100)], [])
    rig.driver.publish()
    chain = rig.device.take()
    assert chain is not None
    rig.device.give(chain, 0)
    assert isinstance(rig.device, PackedDevice)
    assert rig.device._peek(0)[1] == 100
    assert rig.driver.poll() == [(name, 0)]


def test_part_of_a_batch_is_asked_for() -> None:
    for options in ({}, {"packed": True}):
        rig = Rig(8, in_order=True, **options)
        names = [rig.driver.add([], [(0, 10 + n)]) for n in range(5)]
        rig.driver.publish()
        chains = [chain for _ in range(5) if (chain := rig.device.take())]
        rig.device.give(chains[3], 7, batch=chains[:4])
        assert rig.driver.poll(3) == [(names[0], 10), (names[1], 11), (names[2], 12)]
        assert rig.driver.calls_on()
        assert rig.driver.poll() == [(names[3], 7)]
        assert not rig.driver.calls_on()
        rig.device.give(chains[4], 0)
        assert rig.driver.poll() == [(names[4], 0)]


def test_bases() -> None:
    rig = Rig(3, packed=True)
    assert rig.driver.base == 1 << 15 | 1 << 31
    for n in range(1, 8):
        rig.driver.add([(0, 1)], [])
        rig.driver.publish()
        chain = rig.device.take()
        assert chain is not None
        rig.device.give(chain, 0)
        rig.driver.poll()
        half = n % 3 | (n // 3 % 2 == 0) << 15
        assert rig.driver.base == half << 16 | half
    split = Rig(4)
    assert split.driver.base == 0
    assert isinstance(split.device, SplitDevice)


def test_sizes_of_packed_rings() -> None:
    for size in (1, 3, 32768):
        layout = RingLayout(size, packed=True)
        assert (layout.descriptor, layout.avail, layout.used) == (16 * size, 4, 4)
    for size in (0, 32769, -1):
        with pytest.raises(ValueError, match=r"1 to 32768"):
            RingLayout(size, packed=True)


def test_a_packed_ring_has_one_byte_order() -> None:
    with pytest.raises(ValueError, match="little-endian"):
        Rig(4, packed=True, big_endian=True)
