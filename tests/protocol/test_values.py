# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Messages as values: they are immutable, comparable and readable; features and what they require."""

from dataclasses import FrozenInstanceError, is_dataclass

import pytest

from vhost.protocol import (
    REGISTRY,
    REQUIRES,
    U64,
    AddMemReg,
    ConfigReply,
    CryptoSession,
    Gate,
    GetFeatures,
    GpuProtocolFeature,
    MemoryRegion,
    Payload,
    ProtocolFeature,
    SendRarp,
    SetMemTable,
    SetVringAddr,
    SetVringKick,
    SetVringNum,
    Terms,
    VirtioFeature,
)

from .wire import frame, one, raw, requester, responder, spare_fds

REGION = MemoryRegion(0x1000, 0x2000, 0x7000, 0)
F = ProtocolFeature


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (GetFeatures(), "GET_FEATURES"),
        (SetVringNum(0, 256), "SET_VRING_NUM index=0 num=256"),
        (SetVringKick(1, no_fd=True), "SET_VRING_KICK index=1 no_fd=1"),
        (SendRarp(b"\x52\x54\0\1\2\3"), "SEND_RARP mac=525400010203"),
        (
            SetVringAddr(0, 1, 0x1000, 0x3000, 0x2000),
            "SET_VRING_ADDR index=0 flags=1 descriptor=0x1000 used=0x3000 available=0x2000 log=0x0",
        ),
        (
            SetMemTable((REGION, REGION)),
            "SET_MEM_TABLE regions=[0x1000+0x2000 user=0x7000 offset=0x0, "
            "0x1000+0x2000 user=0x7000 offset=0x0]",
        ),
        (
            AddMemReg(MemoryRegion(0, 1, 0, 0, xen_flags=0x102, domid=7)),
            "ADD_MEM_REG region=0x0+0x1 user=0x0 offset=0x0 xen=0x102 domid=7",
        ),
        (U64(0x140000000), "U64 value=0x140000000"),
        (ConfigReply(0, 0, bytes(60)), "ConfigReply offset=0x0 flags=0 data=<60 bytes>"),
    ],
)
def test_text(value: Payload, text: str) -> None:
    assert str(value) == text


def test_text_of_events() -> None:
    back = responder()
    kick = one(back, frame(12, bytes(8), flags=8), spare_fds(1))
    assert str(kick) == "SET_VRING_KICK index=0 no_fd=0 fds=1 need_reply"
    assert (
        str(one(back, frame(99)))
        == "rejected request 99: request 99 on the socket for front-end requests is unknown"
    )
    front = requester()
    front.send(GetFeatures())
    assert str(one(front, frame(1, raw(8, (0, 8, 16)), flags=4))) == "reply to GET_FEATURES: U64 value=0x10"
    front.send(GetFeatures())
    assert str(one(front, frame(1, flags=4))) == "reply to GET_FEATURES: Empty failed (1)"
    assert str(one(front, b"")) == "closed by the peer"


def test_values_are_immutable_and_compare() -> None:
    value = SetVringNum(0, 256)
    with pytest.raises(FrozenInstanceError):
        value.num = 1  # type: ignore[misc]
    assert value == SetVringNum(0, 256) != SetVringNum(1, 256)
    assert hash(value) == hash(SetVringNum(0, 256))
    for row in REGISTRY.values():
        for kind in row.values():
            assert is_dataclass(kind)
            assert "__dict__" not in dir(kind)
            assert kind.__doc__


def test_features_have_the_bits_of_the_specification() -> None:
    assert [feature.bit_length() - 1 for feature in ProtocolFeature] == list(range(24))
    assert [feature.value for feature in GpuProtocolFeature] == [1, 2]
    named = {
        "LOG_ALL": 26,
        "RING_INDIRECT_DESC": 28,
        "RING_EVENT_IDX": 29,
        "PROTOCOL_FEATURES": 30,
        "VERSION_1": 32,
    }
    named |= {"ACCESS_PLATFORM": 33, "RING_PACKED": 34, "IN_ORDER": 35, "RING_RESET": 40}
    assert {name: VirtioFeature[name].bit_length() - 1 for name in named} == named


def test_features_that_need_others() -> None:
    assert dict(REQUIRES) == {
        F.BACKEND_SEND_FD: F.BACKEND_REQ,
        F.INBAND_NOTIFICATIONS: F.BACKEND_REQ | F.REPLY_ACK,
        F.GET_VRING_BASE_SKIP_DRAIN: F.INFLIGHT_SHMFD | F.GET_VRING_BASE_INFLIGHT,
    }
    for feature, needs in REQUIRES.items():
        assert Gate.of(feature).closed(Terms(protocol_features=feature))
        assert not Gate.of(feature).closed(Terms(protocol_features=feature | needs))


def test_the_id_of_a_crypto_session() -> None:
    assert CryptoSession(raw(1072, (1064, 8, 5))).session_id == 5
    assert CryptoSession(raw(1072, (1064, 8, -2))).session_id == -2
    assert CryptoSession(bytes(1071)).session_id == -1
