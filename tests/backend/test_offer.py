# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a front-end is offered: a default that its driver can take whole, and what a user changes by name."""

import asyncio
import enum
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import vhost
from tests.backend.echo import Echo
from tests.backend.peer import FEATURES, PROTOCOL_FEATURES, Peer, footprint
from tests.backend.serving import Serving
from vhost.errors import DeviceError
from vhost.protocol import (
    GetFeatures,
    GetProtocolFeatures,
    IotlbMsg,
    IotlbType,
    ProtocolFeature,
    SetBackendReqFd,
    SetFeatures,
    SetOwner,
    SetProtocolFeatures,
    SetVringCall,
    SetVringEnable,
    SetVringKick,
    SetVringNum,
    VirtioFeature,
)

PLATFORM = VirtioFeature.ACCESS_PLATFORM
INDIRECT = VirtioFeature.RING_INDIRECT_DESC
CHANNEL = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK


class EchoFeature(enum.IntFlag):
    LOUD = 1 << 3
    SLOW_BY_NATURE = 1 << 5


class Named(Echo):
    """Has features of its own, of which it serves one."""

    feature_type = EchoFeature
    features = int(EchoFeature.LOUD)


Connect = Callable[..., AbstractContextManager[Peer]]


@pytest.fixture(params=["threads", "asyncio"])
def connect(unix_build: None, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    """Makes a server with a choice of features, and a front-end of it."""
    before = footprint()

    @contextmanager
    def make(features: str = "", device: vhost.Device | None = None) -> Iterator[Peer]:
        path = tmp_path / "socket"
        with (
            Serving(device or Named(), request.param, path, features=features) as serving,
            serving.connect() as peer,
        ):
            yield peer

    yield make
    assert footprint() == before


def offers(peer: Peer) -> tuple[int, int]:
    virtio = peer.value(GetFeatures())
    return virtio, peer.value(GetProtocolFeatures()) if virtio & VirtioFeature.PROTOCOL_FEATURES else 0


def test_by_default_nothing_that_needs_a_front_end_to_play_along(connect: Connect) -> None:
    with connect() as peer:
        virtio, protocol = offers(peer)
    assert not virtio & PLATFORM
    assert virtio & EchoFeature.LOUD
    for feature in (
        "RING_PACKED",
        "RING_INDIRECT_DESC",
        "RING_EVENT_IDX",
        "IN_ORDER",
        "LOG_ALL",
        "VERSION_1",
    ):
        assert virtio & VirtioFeature[feature], feature
    assert protocol & CHANNEL == CHANNEL


@pytest.mark.parametrize(
    ("text", "added", "removed"),
    [
        ("+iommu", PLATFORM, INDIRECT),
        ("+access-platform", PLATFORM, INDIRECT),
        ("+iommu,+indirect", PLATFORM, 0),
        ("-packed,-indirect", 0, VirtioFeature.RING_PACKED | INDIRECT),
        (" +iommu , -loud ", PLATFORM, INDIRECT | EchoFeature.LOUD),
        ("-event-idx,-log,-in-order", 0, 1 << 29 | 1 << 26 | 1 << 35),
        ("-packed,+packed", 0, 0),
        ("+packed,-packed", 0, VirtioFeature.RING_PACKED),
        ("+loud,", 0, 0),
    ],
)
def test_features_by_name(connect: Connect, text: str, added: int, removed: int) -> None:
    with connect() as peer:
        before, protocol = offers(peer)
    with connect(text) as peer:
        assert offers(peer) == ((before | int(added)) & ~int(removed), protocol)


def test_protocol_features_by_name(connect: Connect) -> None:
    with connect() as peer:
        virtio, before = offers(peer)
    with connect("-protocol.inflight-shmfd,-protocol.config,+protocol.mq") as peer:
        assert offers(peer) == (virtio, before & ~(ProtocolFeature.INFLIGHT_SHMFD | ProtocolFeature.CONFIG))
        taken = before & ~ProtocolFeature.CONFIG
        peer.tell(SetProtocolFeatures(PROTOCOL_FEATURES & ~ProtocolFeature.CONFIG))
        peer.refused(SetProtocolFeatures(taken))  # with INFLIGHT_SHMFD, which is not there


def test_without_protocol_features_there_are_none(connect: Connect) -> None:
    with connect("-protocol-features") as peer:
        assert offers(peer) == (peer.value(GetFeatures()), 0)
        peer.sock.sendall(SetOwner.request.to_bytes(4, "little") + bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        assert peer.value(GetFeatures()) & VirtioFeature.VERSION_1


def test_what_is_not_offered_is_not_taken(connect: Connect) -> None:
    with connect() as peer:
        peer.negotiate()
        peer.refused(SetFeatures(FEATURES | PLATFORM))
    with connect("-packed") as peer:
        peer.negotiate()
        peer.refused(SetFeatures(FEATURES | VirtioFeature.RING_PACKED))


def serve(mode: str, features: str, device: vhost.Device) -> None:
    ours, theirs = socket.socketpair()
    try:
        if mode == "threads":
            vhost.serve(device, sock=theirs, features=features)
        else:
            asyncio.run(vhost.serve_async(device, sock=theirs, features=features))
    finally:
        ours.close()
        theirs.close()


@pytest.mark.parametrize("mode", ["threads", "asyncio"])
@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (
            "+louder",
            ValueError,
            "there is no feature 'louder'; there are loud, slow-by-nature, log, indirect",
        ),
        ("iommu", ValueError, r"'iommu': write \+iommu to offer a feature, -iommu not to"),
        ("+mq", ValueError, "there is no feature 'mq'"),
        ("+slow-by-nature", DeviceError, "echo cannot offer slow-by-nature here; it can offer loud, log"),
        ("+ring-reset,+protocol.rarp", DeviceError, "echo cannot offer ring-reset, protocol.rarp here"),
        ("+protocol.xen-mmap", DeviceError, "echo cannot offer protocol.xen-mmap here"),
    ],
)
def test_mistakes(unix_build: None, mode: str, text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        serve(mode, text, Named())


def test_a_device_without_a_configuration_space_cannot_offer_one() -> None:
    device = Echo()
    device.offers_config = False
    with pytest.raises(DeviceError, match=r"cannot offer protocol\.config here"):
        serve("threads", "+protocol.config", device)


# ---- ACCESS_PLATFORM without a channel: addresses are as they are ----


def works(peer: Peer) -> None:
    """A ring whose addresses are not translated starts, and serves a request."""
    peer.share()
    ring = peer.ring()
    acks = peer.connection.protocol_features & ProtocolFeature.REPLY_ACK
    do = peer.do if acks else peer.tell
    do(SetVringNum(0, ring.size))
    do(peer.addresses(ring))
    do(SetVringCall(0), [ring.call])
    do(SetVringKick(0), [ring.kick])
    do(SetVringEnable(0, 1))
    assert ring.request(b"as it is") == b"si ti sa"


class Untold(Peer):
    """Without REPLY_ACK: nothing is acknowledged."""

    def do(self, message: object, fds: object = ()) -> None:
        self.tell(message, fds)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK, CHANNEL])
@pytest.mark.parametrize("first", ["virtio", "protocol"])
def test_addresses_are_as_they_are_without_a_channel(
    unix_build: None, tmp_path: Path, first: str, missing: int
) -> None:
    protocol = (PROTOCOL_FEATURES | CHANNEL) & ~missing
    with (
        Serving(Named(), "threads", tmp_path / "socket", features="+iommu,+indirect") as serving,
        serving.connect(Untold) as peer,
    ):
        offers(peer)
        messages = [SetFeatures(FEATURES | PLATFORM), SetProtocolFeatures(protocol)]
        for message in messages if first == "virtio" else messages[::-1]:
            peer.tell(message)
        works(peer)
        assert peer.ask(IotlbMsg(0, 4096, 0, 3, IotlbType.UPDATE)).code != 0


@pytest.mark.parametrize("first", ["virtio", "protocol"])
def test_addresses_are_translated_in_whatever_order_it_is_negotiated(connect: Connect, first: str) -> None:
    with connect("+iommu,+indirect") as peer:
        offers(peer)
        messages = [SetFeatures(FEATURES | PLATFORM), SetProtocolFeatures(PROTOCOL_FEATURES | CHANNEL)]
        for message in messages if first == "virtio" else messages[::-1]:
            peer.tell(message)
        asked, theirs = socket.socketpair()
        with asked, theirs:
            asked.settimeout(5)
            peer.do(SetBackendReqFd(), [theirs.fileno()])
            peer.share()
            ring = peer.ring()
            peer.start(ring)
            assert asked.recv(100)[:4] == b"\1\0\0\0"  # IOTLB_MSG: a miss, since nothing is translated


def test_a_running_ring_goes_on_when_the_channel_is_given_up(connect: Connect) -> None:
    with connect("+iommu,+indirect") as peer:
        offers(peer)
        peer.tell(SetProtocolFeatures(PROTOCOL_FEATURES | CHANNEL))
        peer.do(SetFeatures(FEATURES | PLATFORM))
        peer.share()
        ring = peer.ring()
        asked, theirs = socket.socketpair()
        with asked, theirs:
            asked.settimeout(5)
            peer.do(SetBackendReqFd(), [theirs.fileno()])
            peer.start(ring)
            assert asked.recv(100)
            peer.tell(SetProtocolFeatures(PROTOCOL_FEATURES))
            assert ring.request(b"as it is") == b"si ti sa"
