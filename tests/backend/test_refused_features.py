# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""SET_FEATURES that fails, or that makes earlier settings wrong: an answer, and never a traceback."""

from pathlib import Path

import pytest

from tests.backend.echo import Echo
from tests.backend.peer import FEATURES, RING_STRIDE
from tests.backend.serving import Serving
from vhost.errors import DeviceError
from vhost.protocol import (
    SetFeatures,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringKick,
    SetVringNum,
    VirtioFeature,
)


class Choosy(Echo):
    """Takes no in-order rings, and finds out late."""

    refuses = int(VirtioFeature.IN_ORDER)

    def __init__(self) -> None:
        super().__init__()
        self.has = 0

    def negotiated(self, features: int) -> None:
        super().negotiated(features)
        self.has = features
        if features & self.refuses:
            raise DeviceError("not in order")

    def reset(self) -> None:
        super().reset()
        self.has = 0


@pytest.mark.parametrize("mode", ["threads", "asyncio"])
def test_features_that_the_device_refuses_are_not_negotiated(
    unix_build: None, tmp_path: Path, mode: str
) -> None:
    device, wrong = Choosy(), FEATURES | VirtioFeature.IN_ORDER | VirtioFeature.RING_PACKED
    with Serving(device, mode, tmp_path / "socket") as serving, serving.connect() as peer:
        peer.negotiate(0)
        peer.refused(SetFeatures(wrong))
        assert device.has == 0
        peer.do(SetFeatures(FEATURES))
        peer.share()
        ring = peer.ring()
        peer.start(ring)
        assert ring.request(b"before") == b"erofeb"
        peer.refused(SetFeatures(wrong))
        assert device.has == FEATURES
        assert ring.request(b"as before") == b"erofeb sa"
        serving.lines.wait("refused: SET_FEATURES.*not in order", level="WARNING", count=2)
        device.refuses = 1 << 32  # all that it is ever told
        peer.refused(SetFeatures(FEATURES & ~VirtioFeature.RING_EVENT_IDX))
        serving.lines.wait(f"failed to go back to features {FEATURES:#x}", level="ERROR")
        assert ring.request(b"all the same") == b"emas eht lla"


PACKED = FEATURES | VirtioFeature.RING_PACKED


def sane(serving: Serving) -> None:
    assert not serving.lines.having("Traceback|failed", "ERROR")


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
@pytest.mark.parametrize("setting", [SetVringNum(0, 100), SetVringBase(0, 0x8003_8005)], ids=["size", "base"])
def test_settings_of_a_packed_ring_that_is_none_any_more(
    server: Serving, setting: SetVringNum | SetVringBase, running: bool
) -> None:
    """They are found wrong where the ring is to start, and the front-end may set it right."""
    with server.connect() as peer:
        peer.negotiate(PACKED)
        peer.share()
        packed = peer.ring()
        peer.describe(packed)
        peer.do(SetVringEnable(0, 1))
        peer.do(setting)
        if running:
            peer.do(SetVringKick(0), [packed.kick])
        peer.do(SetFeatures(FEATURES))
        packed.memory(0, RING_STRIDE)[:] = bytes(RING_STRIDE)
        ring = peer.ring()
        peer.do(peer.addresses(ring))
        peer.do(SetVringCall(0), [ring.call])
        peer.refused(SetVringKick(0), [ring.kick])
        peer.do(SetVringNum(0, 16))
        peer.do(SetVringBase(0, 0))
        peer.do(SetVringKick(0), [ring.kick])
        assert ring.request(b"split") == b"tilps"
    sane(server)


def test_a_base_of_a_split_ring_that_is_a_packed_one_now(server: Serving) -> None:
    with server.connect() as peer:
        peer.negotiate(FEATURES)
        peer.share()
        ring = peer.ring()
        peer.describe(ring, 100)
        peer.do(SetFeatures(PACKED))
        peer.refused(SetVringKick(0), [ring.kick])  # entry 100 of 16
        peer.do(SetVringBase(0, 0x8000_8000))
        peer.do(SetVringKick(0), [ring.kick])
        assert peer.base() == 0x8000_8000
    sane(server)
