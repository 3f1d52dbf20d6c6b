# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Connections: framing, negotiation, who may say what and when, and both ends joined in memory."""

import pytest

from vhost.errors import LocalProtocolError, RemoteProtocolError
from vhost.protocol import (
    U64,
    AddMemReg,
    Channel,
    CheckDeviceState,
    Closed,
    ConfigChangeMsg,
    Connection,
    DeviceStateReply,
    GetConfig,
    GetFeatures,
    GetInflightFd,
    GetProtocolFeatures,
    GetQueueNum,
    GetVringBase,
    GpuScanout,
    GpuUpdate,
    Inflight,
    MemoryRegion,
    Message,
    PostcopyAdvise,
    ProtocolFeature,
    Rejected,
    Reply,
    Request,
    ResetDevice,
    SendRarp,
    SetBackendReqFd,
    SetDeviceStateFd,
    SetFeatures,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    SetVringEnable,
    SetVringKick,
    SetVringNum,
    SharedObjectLookup,
    ShmemMap,
    Side,
    VirtioFeature,
    VringBase,
)

from .wire import (
    NEED_REPLY,
    POSTCOPY,
    REPLY,
    SLOTS,
    answered,
    deliver,
    events,
    frame,
    one,
    raw,
    requester,
    responder,
    spare_fds,
)

ACKS = ProtocolFeature.REPLY_ACK
BIT_30 = VirtioFeature.PROTOCOL_FEATURES
REGION = MemoryRegion(0, 0x1000, 0x7000, 0)


def messages(connection: Connection) -> list[Message]:
    found = events(connection)
    assert all(isinstance(event, Request) for event in found), found
    return [event.message for event in found if isinstance(event, Request)]


# ---- framing ----

SESSION = [SetOwner(), SetFeatures(5), SetVringNum(0, 256), GetConfig(0, 60), GetVringBase(1)]


def session() -> bytes:
    front = requester()
    return b"".join(front.send(message, need_reply=False)[0] for message in SESSION)


@pytest.mark.parametrize("size", [1, 2, 11, 12, 13, 20, 1000])
def test_messages_in_pieces_and_glued(size: int) -> None:
    data, back, found = session(), responder(), []
    for start in range(0, len(data), size):
        back.receive(memoryview(data)[start : start + size])
        found += messages(back)
    assert found == SESSION


def test_nothing_before_the_last_byte() -> None:
    back = responder()
    for byte in frame(8, bytes(8))[:-1]:
        back.receive(bytes([byte]))
        assert back.next_event() is None
    back.receive(b"\0")
    assert isinstance(back.next_event(), Request)


def test_the_end_between_messages() -> None:
    back = responder()
    back.receive(frame(3))
    back.receive(b"")
    assert [type(event) for event in events(back)] == [Request, Closed]
    assert back.next_event() is None


@pytest.mark.parametrize("size", [1, 11, 12, 19])
def test_the_end_inside_a_message(size: int) -> None:
    back = responder()
    back.receive(frame(8, bytes(8))[:size])
    back.receive(b"")
    with pytest.raises(RemoteProtocolError, match=f"ends inside a message, after {size} bytes"):
        back.next_event()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (frame(3, version=0), "version 0"),
        (frame(3, version=2), "version 2"),
        (frame(3, flags=REPLY), "reply flag set"),
        (raw(12, (0, 4, 3), (4, 4, 1), (8, 4, 4097)), "4097 bytes"),
        (raw(12, (0, 4, 3), (4, 4, 1), (8, 4, 0xFFFF_FFFF)), "4294967295 bytes"),
    ],
)
def test_out_of_step(data: bytes, why: str) -> None:
    back = responder()
    back.receive(frame(3) + data)
    assert isinstance(back.next_event(), Request)  # what came before still counts
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match=why):
            back.next_event()
    back.receive(frame(3))
    with pytest.raises(RemoteProtocolError, match=why):
        back.next_event()


def test_reserved_flags_are_ignored() -> None:
    assert isinstance(one(responder(), frame(3, flags=0xFFFF_FFF0)), Request)


def test_limit_of_payload() -> None:
    front, back = requester(max_payload=64), responder(max_payload=64)
    assert isinstance(one(back, frame(99, bytes(64))), Rejected)
    with pytest.raises(LocalProtocolError, match="the limit here is 64"):
        front.send(GetConfig(0, 64))
    with pytest.raises(RemoteProtocolError, match="the limit is 64"):
        one(back, frame(99, bytes(65)))


def test_wanted_asks_for_the_message_in_progress() -> None:
    back = responder(Channel.GPU, 3)
    assert back.wanted() == 4096
    data = frame(8, raw(20, (12, 4, 100), (16, 4, 100)) + bytes(40000), version=0)
    back.receive(data[:12])
    assert back.wanted() == 40020
    back.receive(data[12:])
    assert isinstance(back.next_event(), Request)
    assert back.wanted() == 4096
    back.receive(raw(12, (0, 4, 8), (8, 4, 60 << 20)))
    assert back.wanted() == 256 << 10


# ---- negotiation, joined ----


def test_a_session() -> None:
    front, back = Connection(Channel.FRONTEND, Side.REQUESTER), Connection(Channel.FRONTEND, Side.RESPONDER)

    def ask(message: Message, value: U64) -> None:
        assert answered(front, back.reply(deliver(front, back, message), value)).value == value

    def tell(message: Message) -> bool:
        output = back.ack(deliver(front, back, message))
        return output is not None and answered(front, output).code == 0

    ask(GetFeatures(), U64(BIT_30 | VirtioFeature.VERSION_1))
    assert not tell(SetFeatures(BIT_30 | VirtioFeature.VERSION_1))
    ask(GetProtocolFeatures(), U64(ProtocolFeature.MQ | ACKS))
    assert not tell(SetProtocolFeatures(ProtocolFeature.MQ | ACKS))
    ask(GetQueueNum(), U64(4))
    assert tell(SetOwner())
    assert tell(SetVringEnable(0, 1))
    for end in front, back:
        assert end.features == end.offered_features == BIT_30 | VirtioFeature.VERSION_1
        assert end.protocol_features == end.offered_protocol_features == ProtocolFeature.MQ | ACKS
        assert end.pending == 0


@pytest.mark.parametrize(
    ("message", "protocol", "features", "why"),
    [
        (GetQueueNum(), ~ProtocolFeature.MQ, -1, "MQ"),
        (SetVringEnable(0, 1), -1, ~BIT_30, "PROTOCOL_FEATURES"),
        (PostcopyAdvise(), POSTCOPY | ProtocolFeature.CONFIGURE_MEM_SLOTS, -1, "excludes it"),
        (AddMemReg(REGION), POSTCOPY, -1, "CONFIGURE_MEM_SLOTS"),
    ],
)
def test_gates_hold_at_both_ends(message: Message, protocol: int, features: int, why: str) -> None:
    front, back = requester(), responder()
    if message.name.startswith("POSTCOPY"):
        front.protocol_features = POSTCOPY
    data, _ = front.send(message, [0] * message.fd_range()[0])
    for end in front, back:
        end.protocol_features = end.offered_protocol_features = protocol & 0xFF_FFFF
        end.features = end.offered_features = features & (1 << 64) - 1
    with pytest.raises(LocalProtocolError, match=why):
        front.send(message, [0] * message.fd_range()[0])
    event = one(back, data, spare_fds(message.fd_range()[0]))
    assert isinstance(event, Rejected)
    assert event.name == message.name
    assert why in str(event.error)


@pytest.mark.parametrize(
    "message", [GetQueueNum(), SetBackendReqFd(), ResetDevice(), SendRarp(bytes(6)), SetVringEnable(0, 1)]
)
def test_what_is_open_once_it_is_offered(message: Message) -> None:
    front, back = requester(), responder()
    for end in front, back:
        end.protocol_features, end.features = 0, int(VirtioFeature.VERSION_1)
    fds = message.fd_range()[0]
    data, _ = front.send(message, [0] * fds)
    assert one(back, data, spare_fds(fds)).message == message
    back.close()


def test_the_answer_to_a_refused_message_goes_by_what_is_negotiated() -> None:
    log, table = raw(16), raw(4, (0, 4, 1))
    back = responder(protocol=0)
    assert back.ack(one(back, frame(6, log), [])) is None, "not SET_LOG_BASE without LOG_SHMFD"
    back.protocol_features = int(ACKS)
    assert back.ack(one(back, frame(6, log))) is None
    assert back.ack(one(back, frame(6, log, flags=NEED_REPLY))) == (
        frame(6, raw(8, (0, 8, 1)), flags=REPLY),
        [],
    )
    back.protocol_features = int(ProtocolFeature.LOG_SHMFD)
    assert back.ack(one(back, frame(6, log))) == (frame(6, flags=REPLY), []), "it has no descriptor"
    assert back.ack(one(back, frame(5, table))) is None
    back.terms.postcopy = True
    assert back.ack(one(back, frame(5, table))) == (frame(5, flags=REPLY), [])


def test_protocol_features_need_bit_30_offered_not_acknowledged() -> None:
    front = Connection(Channel.FRONTEND, Side.REQUESTER)
    with pytest.raises(LocalProtocolError, match=r"PROTOCOL_FEATURES.* is not offered"):
        front.send(GetProtocolFeatures())
    front.offered_features = BIT_30
    assert front.send(GetProtocolFeatures())


@pytest.mark.parametrize("bit", [12, 20, 23])
def test_skip_drain_needs_three_features(bit: int) -> None:
    back = responder(protocol=SLOTS & ~(1 << bit))
    assert isinstance(one(back, frame(45, bytes(8))), Rejected)


def test_reply_ack_counts_once_the_message_that_brings_it_is_processed() -> None:
    back = Connection(Channel.FRONTEND, Side.RESPONDER)
    back.offered_features = BIT_30
    early = one(back, frame(3, flags=NEED_REPLY))
    assert back.ack(early) is None
    bringing = one(back, frame(16, raw(8, (0, 8, ACKS)), flags=NEED_REPLY))
    assert back.ack(bringing) == (frame(16, bytes(8), flags=REPLY), [])
    after = one(back, frame(3, flags=NEED_REPLY))
    assert back.ack(after) == (frame(3, bytes(8), flags=REPLY), [])


def test_need_reply_is_not_asked_for_on_set_protocol_features() -> None:
    front = requester(protocol=ACKS)
    data, _ = front.send(SetProtocolFeatures(0))
    assert data[4] == 1
    assert front.pending == 0


def test_a_refused_negotiation_is_taken_back() -> None:
    back = responder(protocol=ACKS)
    request = one(back, frame(16, raw(8, (0, 8, SLOTS)), flags=NEED_REPLY))
    assert back.protocol_features == SLOTS
    assert back.ack(request, 1) == (frame(16, raw(8, (0, 8, 1)), flags=REPLY), [])
    assert back.protocol_features == ACKS


# ---- answers ----


def test_acks_tell_success_and_failure() -> None:
    front, back = requester(), responder()
    assert answered(front, back.ack(deliver(front, back, SetOwner()))).code == 0
    assert answered(front, back.ack(deliver(front, back, SetOwner()), 7)).code == 7


def test_no_ack_without_need_reply() -> None:
    back = responder()
    assert back.ack(one(back, frame(3))) is None
    assert back.ack(one(back, frame(3)), 1) is None


def test_need_reply_changes_nothing_for_what_is_always_answered() -> None:
    back = responder()
    request = one(back, frame(1, flags=NEED_REPLY))
    assert isinstance(request, Request)
    assert not request.need_reply
    assert back.reply(request, U64(1)) == (frame(1, raw(8, (0, 8, 1)), flags=REPLY), [])


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (GetFeatures(), b""),
        (GetConfig(0, 4), b""),
        (GetInflightFd(0, 0, 1, 1), b""),
        (PostcopyAdvise(), b""),
        (SetDeviceStateFd(0), raw(8, (0, 8, 0x103))),
        (CheckDeviceState(), raw(8, (0, 8, 3))),
    ],
    ids=str,
)
def test_the_form_of_failures(message: Message, payload: bytes) -> None:
    protocol = POSTCOPY if message.name.startswith("POSTCOPY") else SLOTS
    front, back = requester(protocol=protocol), responder(protocol=protocol)
    output = back.ack(deliver(front, back, message, spare_fds(message.fd_range()[0])), 3)
    assert output == (frame(message.request, payload, flags=REPLY), [])
    if message.name != "POSTCOPY_ADVISE":  # there the missing descriptor tells it
        assert answered(front, output).code
    back.close()


def test_rejected_requests_are_answered_with_a_failure() -> None:
    back = responder()
    assert back.ack(one(back, frame(99, b"?", flags=NEED_REPLY))) == (
        frame(99, raw(8, (0, 8, 1)), flags=REPLY),
        [],
    )
    assert back.ack(one(back, frame(99, b"?"))) is None
    assert back.ack(one(back, frame(8, bytes(7), flags=NEED_REPLY)), 5) == (
        frame(8, raw(8, (0, 8, 5)), flags=REPLY),
        [],
    )
    assert back.ack(one(back, frame(24, bytes(3)))) == (frame(24, flags=REPLY), [])
    assert back.ack(one(back, frame(22, bytes(3)))) == (frame(22, raw(8, (0, 8, 1)), flags=REPLY), [])


def test_pipelined_requests_are_answered_in_order() -> None:
    front, back = requester(), responder()
    for message in GetFeatures(), SetOwner(), GetVringBase(1):
        back.receive(front.send(message)[0])
    assert front.pending == 3
    first, second, third = (back.next_event() for _ in range(3))
    output = back.reply(first, U64(1))[0] + back.ack(second)[0] + back.reply(third, VringBase(1, 9))[0]
    front.receive(output)
    assert [event.value for event in events(front) if isinstance(event, Reply)] == [
        U64(1),
        U64(0),
        VringBase(1, 9),
    ]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (frame(2, bytes(8), flags=REPLY), "instead of GET_CONFIG"),
        (frame(24, bytes(11), flags=REPLY), "payload of 11 bytes"),
        (frame(24, raw(12, (4, 4, 5)) + bytes(4), flags=REPLY), "claims 5 bytes but carries 4"),
        (frame(24, raw(12, (4, 4, 3)) + bytes(3), flags=REPLY), "asked for"),
        (frame(24, raw(12, (0, 4, 1), (4, 4, 4)) + bytes(4), flags=REPLY), "asked for"),
        (frame(24, b""), "reply flag clear"),
    ],
)
def test_wrong_answers_end_the_connection(data: bytes, why: str) -> None:
    front = requester()
    front.send(GetConfig(0, 4))
    front.receive(data)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match=why):
            front.next_event()


def test_an_answer_to_nothing() -> None:
    front = requester()
    front.receive(frame(1, bytes(8), flags=REPLY))
    with pytest.raises(RemoteProtocolError, match="nothing was asked"):
        front.next_event()


def test_an_answer_without_its_descriptor() -> None:
    front = requester()
    front.send(GetInflightFd(0, 0, 1, 1))
    front.receive(frame(31, bytes(24), flags=REPLY))
    with pytest.raises(RemoteProtocolError, match="GET_INFLIGHT_FD has 0 descriptors"):
        front.next_event()


# ---- misuse by the caller ----


def misuse(kind: str, front: Connection, back: Connection) -> None:
    if kind == "reply to an ack":
        back.reply(one(back, frame(3, flags=NEED_REPLY)), U64(0))
    elif kind == "ack where a value is due":
        back.ack(one(back, frame(1)))
    elif kind == "value of another kind":
        back.reply(one(back, frame(1)), VringBase(0, 0))
    elif kind == "two answers":
        request = one(back, frame(1))
        back.reply(request, U64(0))
        back.reply(request, U64(0))
    elif kind == "two acks":
        request = one(back, frame(3, flags=NEED_REPLY))
        back.ack(request)
        back.ack(request)
    elif kind == "answer without descriptor":
        back.reply(one(back, frame(31, bytes(24))), Inflight(0, 0, 1, 1))
    elif kind == "success of a lookup without descriptor":
        end = responder(Channel.BACKEND)
        end.ack(one(end, frame(8, bytes(16))))
    elif kind == "own descriptor that is not there":
        request = one(back, frame(42, bytes(8)), spare_fds(1))
        back.reply(request, DeviceStateReply(0, no_fd=False))
    elif kind == "responder sends":
        back.send(SetOwner())
    elif kind == "message of another socket":
        front.send(ConfigChangeMsg())
    elif kind == "too few descriptors":
        front.send(SetMemTable((REGION,)))
    elif kind == "too many descriptors":
        front.send(SetOwner(), [0])
    elif kind == "descriptor with no_fd":
        front.send(SetVringKick(0, no_fd=True), [0])
    elif kind == "too many regions":
        front.send(SetMemTable((REGION,) * 9), [0] * 9)
    elif kind == "field too large":
        front.send(SetVringNum(1 << 32, 0))
    elif kind == "ring index too large":
        front.send(SetVringKick(256), [0])
    elif kind == "negative field":
        front.send(SetVringNum(-1, 0))
    elif kind == "pixels missing":
        requester(Channel.GPU, 3).send(GpuUpdate(0, 0, 0, 2, 2, b""))
    elif kind == "need_reply without REPLY_ACK":
        requester(protocol=0).send(SetOwner(), need_reply=True)
    elif kind == "descriptor without BACKEND_SEND_FD":
        end = requester(Channel.BACKEND, SLOTS & ~ProtocolFeature.BACKEND_SEND_FD)
        end.send(ShmemMap(0, 0, 0, 0), [0])
    elif kind == "after close":
        front.close()
        front.send(SetOwner())
    elif kind == "no descriptor to take":
        event = one(back, frame(3))
        event.take_fd()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("reply to an ack", "use ack"),
        ("ack where a value is due", "use reply"),
        ("value of another kind", "is answered with U64"),
        ("two answers", "has been answered"),
        ("two acks", "has been answered"),
        ("answer without descriptor", "has 0 descriptors"),
        ("success of a lookup without descriptor", "has 0 descriptors"),
        ("own descriptor that is not there", "has 0 descriptors"),
        ("responder sends", "does not send requests"),
        ("message of another socket", "not for the socket"),
        ("too few descriptors", "has 0 descriptors, not 1"),
        ("too many descriptors", "has 1 descriptors, not 0"),
        ("descriptor with no_fd", "has 1 descriptors, not 0"),
        ("too many regions", "use ADD_MEM_REG"),
        ("field too large", "does not fit"),
        ("ring index too large", "does not fit 8 bits"),
        ("negative field", "does not fit"),
        ("pixels missing", "2 x 2 pixels"),
        ("need_reply without REPLY_ACK", "REPLY_ACK is not negotiated"),
        ("descriptor without BACKEND_SEND_FD", "BACKEND_SEND_FD"),
        ("after close", "is closed"),
        ("no descriptor to take", "none left"),
    ],
)
def test_misuse(kind: str, why: str) -> None:
    front, back = requester(), responder()
    with pytest.raises(LocalProtocolError, match=why):
        misuse(kind, front, back)
    back.close()


def test_a_refused_message_changes_nothing() -> None:
    front = requester()
    with pytest.raises(LocalProtocolError):
        front.send(SetFeatures(1 << 64))
    assert front.features == (1 << 64) - 1
    assert front.pending == 0


# ---- the other sockets ----


def test_the_back_end_request_socket() -> None:
    back, front = requester(Channel.BACKEND), responder(Channel.BACKEND)
    assert answered(back, front.ack(deliver(back, front, ConfigChangeMsg()))).code == 0
    found = answered(
        back, front.reply(deliver(back, front, SharedObjectLookup(bytes(16))), U64(0), spare_fds(1))
    )
    assert (found.code, found.fd_count) == (0, 1)
    found.drop()
    assert answered(back, front.ack(deliver(back, front, SharedObjectLookup(bytes(16))), 2)).code == 2


def test_the_gpu_socket_knows_no_acks() -> None:
    back, front = requester(Channel.GPU, -1 & 0xFF_FFFF), responder(Channel.GPU, 3)
    assert front.ack(deliver(back, front, GpuScanout(0, 1, 1))) is None
    assert back.pending == 0
    assert front.ack(one(front, frame(99, version=0, flags=NEED_REPLY))) is None


def test_a_new_back_end_socket_is_handed_over() -> None:
    front, back = requester(), responder()
    request = deliver(front, back, SetBackendReqFd(), spare_fds(1))
    assert request.fd_count == 1
    back.close()
