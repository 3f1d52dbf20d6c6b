# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Settings that come while a ring is started: it waits for its next start, which may find them wrong."""

import os
from collections.abc import Callable

import pytest

from tests.backend.peer import FEATURES, RAM_SIZE, USER, DriverRing, Peer, readable
from tests.backend.serving import Serving
from vhost.protocol import (
    GetQueueNum,
    SetFeatures,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringKick,
    SetVringNum,
    VirtioFeature,
)

Setting = Callable[[Peer, DriverRing], None]


def number(peer: Peer, ring: DriverRing) -> None:
    peer.do(SetVringNum(0, ring.size))


def base(peer: Peer, ring: DriverRing) -> None:
    peer.do(SetVringBase(0, 0))


def addresses(peer: Peer, ring: DriverRing) -> None:
    peer.do(peer.addresses(ring))


ORDERS: dict[str, list[Setting]] = {
    "QEMU, libblkio, Linux": [number, base, addresses],
    "rust-vmm": [number, addresses, base],
    "position last": [addresses, number, base],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("kind", [VirtioFeature(0), VirtioFeature.RING_PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("disables", [True, False], ids=["disabled first", "enabled"])
def test_a_ring_that_was_never_stopped_is_set_up_for_another_driver(
    server: Serving, kind: VirtioFeature, order: list[Setting], disables: bool
) -> None:
    with server.connect() as peer:
        peer.negotiate(FEATURES | kind)
        peer.share()
        peer.start(ring := peer.ring(0, 16))
        for size in (256, 8, 64):
            for n in range(5):
                assert ring.request(bytes([n, 1])) == bytes([1, n])
            peer.do(SetVringEnable(0, 0) if disables else SetVringNum(0, size))
            before, ring = ring, peer.ring(0, size)
            ring.memory(0, 0x4000)[:] = bytes(0x4000)
            for setting in order:
                setting(peer, ring)
            peer.do(SetVringCall(0), [ring.call])
            ring.add(b"early", 64)
            before.kick_it()
            peer.value(GetQueueNum())
            assert not ring.driver.poll()
            peer.do(SetVringKick(0), [ring.kick])
            peer.do(SetVringEnable(0, 1))
            assert ring.answer() == b"ylrae"
            assert not readable(before.err, 0)
    server.lines.wait(
        "ring 0: SET_VRING_NUM came while it was started; it waits for SET_VRING_KICK", level="INFO"
    )
    assert not server.lines.having("", "ERROR")
    assert not server.lines.having("", "WARNING")


def test_settings_that_do_not_go_together_are_found_at_the_start(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        ring.request(b"a")
        peer.do(SetVringAddr(0, 0, USER, USER + RAM_SIZE - 0x100, USER + 0x1000, 0))
        peer.do(SetVringNum(0, 256))  # for a used ring of so many there is no room at the end of memory
        assert not readable(ring.err, 0)
        peer.refused(SetVringKick(0), [ring.kick])
        assert peer.base() == 1
        peer.do(SetVringNum(0, 16))
        addresses(peer, ring)
        peer.do(SetVringKick(0), [ring.kick])
        assert ring.request(b"on") == b"no"
    assert not server.lines.having("", "ERROR")


def test_what_is_wrong_by_itself_is_refused_and_changes_nothing(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        for message in (
            SetVringNum(0, 3),
            SetVringNum(0, 512),
            SetVringBase(0, 0x10000),
            SetVringAddr(0, 0, USER + 8, USER + 0x2000, USER + 0x1000, 0),
            SetVringAddr(0, 0, USER, 16, USER + 0x1000, 0),
        ):
            peer.refused(message)
            assert ring.request(b"on") == b"no"


def test_what_is_the_same_changes_nothing(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        ring.request(b"a")
        number(peer, ring)
        addresses(peer, ring)
        assert ring.request(b"on") == b"no"
        assert server.device.events.count("stop 0") == 0
        peer.do(SetVringBase(0, 2))  # where it is, which it cannot know before it is stopped
        ring.add(b"ab", 64)
        ring.kick_it()
        assert peer.base() == 2
        assert not ring.driver.poll()


def test_the_kind_of_ring_changes_after_its_settings(server: Serving) -> None:
    """Sizes and positions of packed rings are not for split ones."""
    with server.connect() as peer:
        peer.negotiate(FEATURES | VirtioFeature.RING_PACKED)
        peer.share()
        for size, position, words in ((5, 0, "5 entries"), (8, 0x8001_8001, "base 0x80018001")):
            peer.do(SetFeatures(FEATURES | VirtioFeature.RING_PACKED))
            peer.do(SetVringNum(0, size))
            peer.do(SetVringBase(0, position))
            peer.do(SetVringAddr(0, 0, USER, USER + 0x2000, USER + 0x1000, 0))
            peer.do(SetFeatures(FEATURES))
            fd = os.eventfd(0)
            peer.refused(SetVringKick(0), [fd])
            server.lines.wait(f"refused: SET_VRING_KICK.*{words}", level="WARNING")
            if size == 5:
                peer.refused(SetVringNum(0, size))
                peer.do(SetVringAddr(0, 0, USER, USER + 0x2000, USER + 0x1000, 0))
            os.close(fd)
    assert not server.lines.having("", "ERROR")


def test_a_flood_of_settings_on_a_running_ring(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        for n in range(1, 300):
            peer.tell(SetVringNum(0, 1 << n % 9))
            peer.tell(SetVringBase(0, n))
            peer.tell(SetVringKick(0), [ring.kick])
            ring.kick_it()
        peer.do(SetVringNum(0, 16))
        peer.do(SetVringBase(0, int.from_bytes(ring.memory(0x1002, 2), "little")))
        peer.do(SetVringKick(0), [ring.kick])
        assert peer.value(GetQueueNum())
