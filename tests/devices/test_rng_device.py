# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The random number generator, on a queue in memory."""

import logging
from collections.abc import Callable

import pytest

from vhost import Device
from vhost.devices import rng as rng_module
from vhost.devices.entropy import SeededSource
from vhost.devices.rng import Rng

from .rig import Rig

MakeRig = Callable[[Device], Rig]


def stream(seed: int, n: int) -> bytes:
    source, data = SeededSource(seed), b""
    while len(data) < n:
        data += source(n - len(data))
    return data


def test_requests_get_the_stream_in_order(rig: MakeRig) -> None:
    driver = rig(Rng(SeededSource(7)))
    got = b""
    for room in (1, 64, (16, 16, 32), 1000, (1, 2)):
        used, data = driver.ask(room=room)
        assert used == len(data)
        got += data
    assert got == stream(7, len(got))


def test_batch_larger_than_a_ring_of_requests(rig: MakeRig) -> None:
    driver = rig(Rng(SeededSource(8)))
    for _ in range(200):
        driver.offer(room=64)
    assert driver.device.handle(driver.queue) is None
    got = b"".join(data[:used] for used, data in driver.answers())
    assert len(got) >= 200
    assert stream(8, len(got)) == got


def test_huge_request_gets_some_bytes_and_takes_little_memory(rig: MakeRig) -> None:
    driver = rig(Rng(SeededSource(9)))
    used, data = driver.ask(room=8 << 20)
    assert 0 < used < 1 << 20
    assert data[:used] == stream(9, used)
    assert data[used:] == b"\xee" * (len(data) - used)


def test_every_request_of_a_batch_gets_at_least_a_byte(rig: MakeRig) -> None:
    driver = rig(Rng(SeededSource(3)))
    for _ in range(64):
        driver.offer(room=4096)
    driver.device.handle(driver.queue)
    answers = driver.answers()
    assert len(answers) == 64
    assert min(used for used, _ in answers) >= 1


def test_default_source_is_the_system(rig: MakeRig) -> None:
    driver = rig(Rng())
    first, second = driver.ask(room=64), driver.ask(room=64)
    assert first[0] == second[0] == 64
    assert first[1] != second[1]


def test_quota_is_kept_and_renewed_after_the_period(rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(rng_module.time, "monotonic", lambda: now)
    driver = rig(Rng(SeededSource(1), max_bytes=100, period_ms=500))
    driver.offer(room=64)
    driver.offer(room=64)
    driver.offer(room=64)
    delay = driver.device.handle(driver.queue)
    assert sum(used for used, _ in driver.answers()) == 100
    assert delay == pytest.approx(0.5)
    now += 0.4
    driver.offer(room=64)
    assert driver.device.handle(driver.queue) == pytest.approx(0.1)
    assert driver.answers() == []
    now += 0.1
    assert driver.device.handle(driver.queue) is None
    (answer,) = driver.answers()
    assert answer == (64, stream(1, 164)[100:])


def test_request_that_the_quota_cannot_serve_waits(rig: MakeRig) -> None:
    driver = rig(Rng(SeededSource(1), max_bytes=5))
    for _ in range(10):
        driver.offer(room=1)
    driver.device.handle(driver.queue)
    assert [used for used, _ in driver.answers()] == [1] * 5


def test_quota_outlives_a_reset(rig: MakeRig) -> None:
    driver = rig(Rng(SeededSource(1), max_bytes=10))
    assert driver.ask(room=64)[0] == 10
    driver.device.reset()
    driver.offer(room=64)
    delay = driver.device.handle(driver.queue)
    assert delay is not None
    assert 60 < delay <= 65.536


def test_dry_source_is_asked_again_and_no_request_is_lost(rig: MakeRig) -> None:
    supply = [b"", b"", b"abc"]
    driver = rig(Rng(lambda n: supply.pop(0)))
    driver.offer(room=8)
    for _ in range(2):
        delay = driver.device.handle(driver.queue)
        assert delay is not None
        assert 0 < delay < 1
        assert driver.answers() == []
    supply.append(b"")
    driver.device.handle(driver.queue)
    assert driver.answers() == [(3, b"abc\xee\xee\xee\xee\xee")]


def test_readable_bytes_are_ignored_with_one_warning(rig: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    driver = rig(Rng(SeededSource(5)))
    assert driver.ask(b"hello", room=16) == (16, stream(5, 16))
    assert driver.ask(b"hello", b"!") == (0, b"")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        "the driver sends 5 bytes to a device that only gives: ignored"
    ]


def test_pausing_queue_is_left_alone(rig: MakeRig) -> None:
    driver = rig(Rng())
    driver.offer(room=64)
    driver.queue.pausing = True
    assert driver.device.handle(driver.queue) is None
    assert driver.answers() == []
