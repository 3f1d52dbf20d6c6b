# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What front-ends send that is a little off, or early, and is taken all the same."""

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

import pytest

import vhost
from tests.backend.echo import Echo
from tests.backend.peer import FEATURES, PROTOCOL_FEATURES, Peer, readable
from tests.backend.serving import Serving
from tests.hostile.raw import answer, send
from vhost.protocol import (
    GetFeatures,
    GetProtocolFeatures,
    GetQueueNum,
    ProtocolFeature,
    ResetDevice,
    SetBackendReqFd,
    SetFeatures,
    SetLogBase,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    SetVringEnable,
    VirtioFeature,
)


@pytest.mark.parametrize("carried", range(1, 9))
def test_a_table_that_carries_more_regions_than_it_counts(server: Serving, carried: int) -> None:
    with server.connect() as peer:
        peer.negotiate()
        peer.do(SetOwner())
        region = struct.pack("=QQQQ", *peer.region()[:4])
        send(
            peer, SetMemTable.request, struct.pack("=I4x", 1) + region + bytes(32 * (carried - 1)), [peer.ram]
        )
        assert answer(peer) == (SetMemTable.request, 5, bytes(8))
        works(peer)


@pytest.mark.parametrize("mode", ["threads", "asyncio"])
@pytest.mark.parametrize("base", [0x8000, 0x8003, 0x0002])
def test_a_packed_base_without_its_used_half(unix_build: None, tmp_path: Path, mode: str, base: int) -> None:
    """As DPDK sends it. With the quirk the half that is there counts for both, without it all 32 bits do."""
    turns = (base & 0x7FFF) + (8 if base < 0x8000 else 0)
    for quirks, served in (("packed-base-16", True), ("", False), ("packed_base_16,-packed-base-16", False)):
        with (
            Serving(Echo(), mode, tmp_path / "socket", quirks=quirks),
            vhost.connect(tmp_path / "socket", packed=True, queue_size=8) as device,
        ):
            for _ in range(turns):
                device.request(b"", 1)  # an entry each
            assert device.stop(0) & 0xFFFF == base
            device.start(0, base)
            if served:
                assert device.request(b"abc", 3) == b"cba"
            else:
                with pytest.raises(TimeoutError):
                    device.request(b"abc", 3, timeout=0.3)


@pytest.mark.parametrize("quirks", ["packed-base-15", "packed-base-16,,many", "--many-regions", "-"])
def test_quirks_that_are_none(unix_build: None, tmp_path: Path, quirks: str) -> None:
    with pytest.raises(ValueError, match=r"there is no quirk .*; there are inflight-20, .*packed-base-16"):
        vhost.serve(Echo(), tmp_path / "socket", quirks=quirks)
    with pytest.raises(ValueError, match="there is no quirk"):
        vhost.connect(tmp_path / "socket", quirks=quirks)


def negotiate(peer: Peer, features: int, protocol: int) -> None:
    """Both kinds of features, without waiting for an acknowledgement."""
    peer.value(GetFeatures())
    peer.value(GetProtocolFeatures())
    peer.tell(SetProtocolFeatures(protocol))
    peer.tell(SetFeatures(features))
    peer.tell(SetOwner())


@pytest.mark.parametrize("protocol", [0, ProtocolFeature.REPLY_ACK])
def test_what_is_open_once_it_is_offered(server: Serving, protocol: int) -> None:
    ours, theirs = socket.socketpair()
    with server.connect() as peer, ours, theirs:
        negotiate(peer, FEATURES, protocol)
        assert peer.value(GetQueueNum()) == 2
        peer.tell(SetBackendReqFd(), [theirs.fileno()])
        peer.tell(ResetDevice())
        assert peer.value(GetQueueNum()) == 2
        server.lines.wait("RESET_DEVICE")
    assert not server.lines.having("refused", "WARNING")
    assert isinstance(server.device, Echo)
    assert "reset" in server.device.events


def test_rings_are_enabled_and_disabled_without_bit_30(server: Serving) -> None:
    with server.connect() as peer:
        negotiate(peer, FEATURES & ~VirtioFeature.PROTOCOL_FEATURES, PROTOCOL_FEATURES)
        peer.do(SetMemTable((peer.region(),)), [peer.ram])
        ring = peer.ring()
        peer.start(ring)
        assert ring.request(b"on") == b"no"
        peer.do(SetVringEnable(0, 0))
        with suppress(BlockingIOError):
            os.eventfd_read(ring.call)  # for the request before
        ring.add(b"off", 64)
        ring.kick_it()
        assert not readable(ring.call, 0.2)
        peer.do(SetVringEnable(0, 1))
        assert ring.answer() == b"ffo"
    server.lines.wait("SET_VRING_ENABLE index=0 num=0, though PROTOCOL_FEATURES is not neg", level="INFO")
    assert not server.lines.having("refused", "WARNING")


def test_a_log_that_was_not_negotiated_is_answered_only_if_that_is_asked_for(server: Serving) -> None:
    log = struct.pack("=QQ", 4096, 0)
    with server.connect() as peer:
        negotiate(peer, FEATURES, ProtocolFeature.REPLY_ACK)
        send(peer, SetLogBase.request, log, [peer.ram], flags=1)
        assert peer.value(GetQueueNum()) == 2, "what comes next is its own answer"
        send(peer, SetLogBase.request, log, [peer.ram])
        assert answer(peer) == (SetLogBase.request, 5, struct.pack("=Q", 1))
        server.lines.wait("SET_LOG_BASE is not allowed.*LOG_SHMFD", level="WARNING", count=2)
    with server.connect() as peer:
        negotiate(peer, FEATURES, ProtocolFeature.LOG_SHMFD)
        send(peer, SetLogBase.request, log, flags=1)
        assert answer(peer) == (SetLogBase.request, 5, b""), "it has no descriptor; an answer is always due"


def works(peer: Peer) -> None:
    ring = peer.ring()
    peer.start(ring)
    assert ring.request(b"as ever") == b"reve sa"
