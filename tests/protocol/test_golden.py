# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Every message and every answer against bytes put together from the offsets in the specification."""

import pytest

from vhost.protocol import (
    REGISTRY,
    U64,
    AddMemReg,
    BackendIotlbMsg,
    Channel,
    CheckDeviceState,
    CloseCryptoSession,
    ConfigChangeMsg,
    ConfigReply,
    CreateCryptoSession,
    CryptoSession,
    DeviceStateReply,
    DisplayInfo,
    Edid,
    Empty,
    GetConfig,
    GetFeatures,
    GetInflightFd,
    GetMaxMemSlots,
    GetProtocolFeatures,
    GetQueueNum,
    GetSharedObject,
    GetShmemConfig,
    GetStatus,
    GetVringBase,
    GetVringBaseSkipDrain,
    GpuCursorPos,
    GpuCursorPosHide,
    GpuCursorUpdate,
    GpuDmabufScanout,
    GpuDmabufScanout2,
    GpuDmabufUpdate,
    GpuGetDisplayInfo,
    GpuGetEdid,
    GpuGetProtocolFeatures,
    GpuScanout,
    GpuSetProtocolFeatures,
    GpuSetSocket,
    GpuUpdate,
    Inflight,
    IotlbMsg,
    LogBase,
    MemoryRegion,
    MemTable,
    Message,
    NetSetMtu,
    Payload,
    PostcopyAdvise,
    PostcopyEnd,
    PostcopyListen,
    ProtocolFeature,
    RemMemReg,
    ResetDevice,
    ResetOwner,
    SendRarp,
    SetBackendReqFd,
    SetConfig,
    SetDeviceStateFd,
    SetFeatures,
    SetInflightFd,
    SetLogBase,
    SetLogFd,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    SetStatus,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringEndian,
    SetVringErr,
    SetVringKick,
    SetVringNum,
    SharedObject,
    SharedObjectAdd,
    SharedObjectLookup,
    SharedObjectRemove,
    ShmemConfig,
    ShmemMap,
    ShmemUnmap,
    Terms,
    VringBase,
    VringCall,
    VringErr,
    VringHostNotifierMsg,
    VringKick,
)

from .wire import POSTCOPY, SLOTS, frame, raw, requester, responder, spare_fds

UUID = bytes(range(16))
MAC = b"\x52\x54\x00\x12\x34\x56"
PIXELS = bytes(range(24))
BIG = 0x1122334455667788
REGION = MemoryRegion(0x1_0000_0000, 0x20_0000, 0x7F00_0000_0000, 0x1000)
REGION_2 = MemoryRegion(0, 0xA_0000, 0x7E00_0000_0000, 0)
XEN_REGION = MemoryRegion(0x8000_0000_0000_0000, 0x1000, 0x8000_0000_0000_0000, 0, xen_flags=0x102, domid=7)


def region(at: int, value: MemoryRegion) -> tuple[tuple[int, int, int], ...]:
    return (
        (at, 8, value.guest_addr),
        (at + 8, 8, value.size),
        (at + 16, 8, value.user_addr),
        (at + 24, 8, value.mmap_offset),
    )


def u64(value: int) -> bytes:
    return raw(8, (0, 8, value))


def state(index: int, num: int = 0) -> bytes:
    return raw(8, (0, 4, index), (4, 4, num))


NONE = b""
INFLIGHT = raw(24, (0, 8, 0x4000), (8, 8, 0x1000), (16, 2, 3), (18, 2, 256))
IOTLB = raw(32, (0, 8, BIG), (8, 8, 0x1000), (16, 8, 0x7F00_0000_0000), (24, 1, 3), (25, 1, 2))
MMAP = raw(40, (0, 1, 5), (8, 8, 0x1000), (16, 8, 0x2000), (24, 8, 0x3000), (32, 8, 1))
TABLE = raw(8 + 64, (0, 4, 2), *region(8, REGION), *region(40, REGION_2))
DMABUF = [(i * 4, 4, i + 1) for i in range(9)] + [(36, 4, -2)]

# code, descriptors, payload from offsets, value
FRONTEND: list[tuple[int, int, bytes, Message]] = [
    (1, 0, NONE, GetFeatures()),
    (2, 0, u64(0x1_4000_0000), SetFeatures(0x1_4000_0000)),
    (3, 0, NONE, SetOwner()),
    (4, 0, NONE, ResetOwner()),
    (5, 2, TABLE, SetMemTable((REGION, REGION_2))),
    (6, 1, raw(16, (0, 8, 0x8000), (8, 8, 0x1000)), SetLogBase(0x8000, 0x1000)),
    (7, 1, NONE, SetLogFd()),
    (8, 0, state(1, 256), SetVringNum(1, 256)),
    (
        9,
        0,
        raw(40, (0, 4, 2), (4, 4, 1), (8, 8, 0xA000), (16, 8, 0xB000), (24, 8, 0xC000), (32, 8, 0xD000)),
        SetVringAddr(2, 1, descriptor=0xA000, used=0xB000, available=0xC000, log=0xD000),
    ),
    (10, 0, state(1, 0x8005_8007), SetVringBase(1, 0x8005_8007)),
    (11, 0, state(3), GetVringBase(3)),
    (12, 1, u64(2), SetVringKick(2)),
    (12, 0, u64(0x102), SetVringKick(2, no_fd=True)),
    (13, 1, u64(0xFF), SetVringCall(255)),
    (13, 0, u64(0x1FF), SetVringCall(255, no_fd=True)),
    (14, 1, u64(0), SetVringErr(0)),
    (14, 0, u64(0x100), SetVringErr(0, no_fd=True)),
    (15, 0, NONE, GetProtocolFeatures()),
    (16, 0, u64(SLOTS), SetProtocolFeatures(SLOTS)),
    (17, 0, NONE, GetQueueNum()),
    (18, 0, state(1, 1), SetVringEnable(1, 1)),
    (19, 0, MAC + bytes(2), SendRarp(MAC)),
    (20, 0, u64(1500), NetSetMtu(1500)),
    (21, 1, NONE, SetBackendReqFd()),
    (22, 0, IOTLB, IotlbMsg(BIG, 0x1000, 0x7F00_0000_0000, 3, 2)),
    (23, 0, state(4, 1), SetVringEndian(4, 1)),
    (24, 0, raw(12 + 8, (0, 4, 4), (4, 4, 8), (8, 4, 1)), GetConfig(4, 8, 1)),
    (25, 0, raw(12, (0, 4, 4), (4, 4, 3), (8, 4, 1)) + b"abc", SetConfig(4, 1, b"abc")),
    (26, 0, bytes(1072), CreateCryptoSession(bytes(1072))),
    (27, 0, u64(9), CloseCryptoSession(9)),
    (28, 0, NONE, PostcopyAdvise()),
    (29, 0, NONE, PostcopyListen()),
    (30, 0, NONE, PostcopyEnd()),
    (31, 0, INFLIGHT, GetInflightFd(0x4000, 0x1000, 3, 256)),
    (32, 1, INFLIGHT, SetInflightFd(0x4000, 0x1000, 3, 256)),
    (33, 1, NONE, GpuSetSocket()),
    (34, 0, NONE, ResetDevice()),
    (35, 0, state(2), VringKick(2)),
    (36, 0, NONE, GetMaxMemSlots()),
    (37, 1, raw(40, *region(8, REGION)), AddMemReg(REGION)),
    (38, 0, raw(40, *region(8, REGION)), RemMemReg(REGION)),
    (39, 0, u64(0xF), SetStatus(0xF)),
    (40, 0, NONE, GetStatus()),
    (41, 0, UUID, GetSharedObject(UUID)),
    (42, 1, raw(8, (0, 4, 1), (4, 4, 0)), SetDeviceStateFd(1)),
    (43, 0, NONE, CheckDeviceState()),
    (44, 0, NONE, GetShmemConfig()),
    (45, 0, state(6), GetVringBaseSkipDrain(6)),
]
BACKEND: list[tuple[int, int, bytes, Message]] = [
    (1, 0, IOTLB, BackendIotlbMsg(BIG, 0x1000, 0x7F00_0000_0000, 3, 2)),
    (2, 0, NONE, ConfigChangeMsg()),
    (
        3,
        1,
        raw(24, (0, 8, 7), (8, 8, 0x1000), (16, 8, 0x2000)),
        VringHostNotifierMsg(7, False, 0x1000, 0x2000),
    ),
    (3, 0, raw(24, (0, 8, 0x107)), VringHostNotifierMsg(7, True, 0, 0)),
    (4, 0, state(2), VringCall(2)),
    (5, 0, state(3), VringErr(3)),
    (6, 0, UUID, SharedObjectAdd(UUID)),
    (7, 0, UUID, SharedObjectRemove(UUID)),
    (8, 0, UUID, SharedObjectLookup(UUID)),
    (9, 1, MMAP, ShmemMap(5, 0x1000, 0x2000, 0x3000, 1)),
    (10, 0, MMAP, ShmemUnmap(5, 0x1000, 0x2000, 0x3000, 1)),
]
GPU: list[tuple[int, int, bytes, Message]] = [
    (1, 0, NONE, GpuGetProtocolFeatures()),
    (2, 0, u64(3), GpuSetProtocolFeatures(3)),
    (3, 0, NONE, GpuGetDisplayInfo()),
    (4, 0, raw(12, (0, 4, 1), (4, 4, 2), (8, 4, 3)), GpuCursorPos(1, 2, 3)),
    (5, 0, raw(12, (0, 4, 1), (4, 4, 2), (8, 4, 3)), GpuCursorPosHide(1, 2, 3)),
    (
        6,
        0,
        raw(20 + 16384, (0, 4, 1), (4, 4, 2), (8, 4, 3), (12, 4, 4), (16, 4, 5), (20, 1, 6), (16403, 1, 7)),
        GpuCursorUpdate(1, 2, 3, 4, 5, b"\6" + bytes(16382) + b"\7"),
    ),
    (7, 0, raw(12, (0, 4, 1), (4, 4, 640), (8, 4, 480)), GpuScanout(1, 640, 480)),
    (
        8,
        0,
        raw(20, (0, 4, 1), (4, 4, 2), (8, 4, 3), (12, 4, 3), (16, 4, 2)) + PIXELS,
        GpuUpdate(1, 2, 3, 3, 2, PIXELS),
    ),
    (9, 1, raw(40, *DMABUF), GpuDmabufScanout(1, 2, 3, 4, 5, 6, 7, 8, 9, -2)),
    (9, 0, raw(40, *DMABUF), GpuDmabufScanout(1, 2, 3, 4, 5, 6, 7, 8, 9, -2)),
    (10, 0, raw(20, *DMABUF[:5]), GpuDmabufUpdate(1, 2, 3, 4, 5)),
    (11, 0, raw(4, (0, 4, 3)), GpuGetEdid(3)),
    (12, 1, raw(48, *DMABUF, (40, 8, BIG)), GpuDmabufScanout2(1, 2, 3, 4, 5, 6, 7, 8, 9, -2, BIG)),
]
REQUESTS = [
    *((Channel.FRONTEND, *row) for row in FRONTEND),
    *((Channel.BACKEND, *row) for row in BACKEND),
    *((Channel.GPU, *row) for row in GPU),
]

# question, descriptors with the answer, its payload from offsets, its value
ANSWERS: list[tuple[Message, int, bytes, Payload]] = [
    (GetFeatures(), 0, u64(BIG), U64(BIG)),
    (SetLogBase(0x8000, 0x1000), 0, raw(16, (0, 8, 0x8000), (8, 8, 0x1000)), LogBase(0x8000, 0x1000)),
    (GetVringBase(3), 0, state(3, 77), VringBase(3, 77)),
    (GetProtocolFeatures(), 0, u64(SLOTS), U64(SLOTS)),
    (GetQueueNum(), 0, u64(8), U64(8)),
    (IotlbMsg(0, 0, 0, 0, 2), 0, u64(0), U64(0)),
    (GetConfig(4, 3, 1), 0, raw(12, (0, 4, 4), (4, 4, 3), (8, 4, 1)) + b"abc", ConfigReply(4, 1, b"abc")),
    (GetConfig(4, 3, 1), 0, NONE, ConfigReply(0, 0, b"")),
    (CreateCryptoSession(b"x"), 0, raw(1072, (1064, 8, 5)), CryptoSession(raw(1072, (1064, 8, 5)))),
    (PostcopyAdvise(), 1, NONE, Empty()),
    (PostcopyEnd(), 0, u64(0), U64(0)),
    (GetInflightFd(0, 0, 3, 256), 1, INFLIGHT, Inflight(0x4000, 0x1000, 3, 256)),
    (GetMaxMemSlots(), 0, u64(509), U64(509)),
    (GetStatus(), 0, u64(0xF), U64(0xF)),
    (GetSharedObject(UUID), 1, UUID, SharedObject(UUID)),
    (GetSharedObject(UUID), 0, UUID, SharedObject(UUID)),
    (SetDeviceStateFd(0), 0, u64(0x100), DeviceStateReply(0, no_fd=True)),
    (SetDeviceStateFd(0), 1, u64(0), DeviceStateReply(0, no_fd=False)),
    (SetDeviceStateFd(0), 0, u64(0x105), DeviceStateReply(5, no_fd=True)),
    (CheckDeviceState(), 0, u64(1), U64(1)),
    (
        GetShmemConfig(),
        0,
        raw(2056, (0, 4, 2), (8, 8, 0x1000), (24, 8, 0x3000)),
        ShmemConfig((0x1000, 0, 0x3000)),
    ),
    (GetShmemConfig(), 0, raw(2056, (0, 4, 1), (8 + 255 * 8, 8, 9)), ShmemConfig((*[0] * 255, 9))),
    (GetVringBaseSkipDrain(6), 0, state(6, 5), VringBase(6, 5)),
    (SharedObjectLookup(UUID), 1, u64(0), U64(0)),
    (SharedObjectLookup(UUID), 0, u64(1), U64(1)),
    (GpuGetProtocolFeatures(), 0, u64(3), U64(3)),
    (GpuGetDisplayInfo(), 0, raw(408, (407, 1, 9)), DisplayInfo(raw(408, (407, 1, 9)))),
    (GpuDmabufUpdate(0, 0, 0, 1, 1), 0, NONE, Empty()),
    (GpuGetEdid(0), 0, raw(1056, (1055, 1, 9)), Edid(raw(1056, (1055, 1, 9)))),
]


def label(value: object) -> str | None:
    return value.name if isinstance(value, Payload) else None


def negotiated(message: Message) -> int:
    if message.channel is Channel.GPU:
        return 3
    return POSTCOPY if message.name.startswith("POSTCOPY") else SLOTS


def version(channel: Channel) -> int:
    return 0 if channel is Channel.GPU else 1


@pytest.mark.parametrize(("channel", "code", "fds", "payload", "message"), REQUESTS, ids=label)
def test_request(channel: Channel, code: int, fds: int, payload: bytes, message: Message) -> None:
    wire = frame(code, payload, version=version(channel))
    protocol = negotiated(message)
    riders = spare_fds(fds)
    try:
        sent = requester(channel, protocol).send(message, riders, need_reply=False)
    except BaseException:
        responder().receive(b"", riders)
        raise
    assert sent == (wire, riders)
    end = responder(channel, protocol)
    end.receive(wire, riders)
    event = end.next_event()
    assert event is not None
    assert event.message == message
    assert event.fd_count == fds
    end.close()


@pytest.mark.parametrize(("question", "fds", "payload", "value"), ANSWERS, ids=label)
def test_answer(question: Message, fds: int, payload: bytes, value: Payload) -> None:
    channel, protocol = question.channel, negotiated(question)
    front, back = requester(channel, protocol), responder(channel, protocol)
    data, _ = front.send(question, [0] * question.fd_range()[0])
    back.receive(data, spare_fds(question.fd_range()[0]))
    request = back.next_event()
    wire = frame(question.request, payload, flags=0x4, version=version(channel))
    riders = spare_fds(fds)
    assert back.reply(request, value, riders) == (wire, riders)
    front.receive(wire, riders)
    reply = front.next_event()
    assert reply.value == value
    assert reply.fd_count == fds
    assert front.pending == 0
    front.close()
    back.close()


def test_no_message_and_no_answer_is_missing() -> None:
    tested = {(channel, code) for channel, code, *_ in REQUESTS}
    assert tested == {(channel, code) for channel, row in REGISTRY.items() for code in row}
    assert [len(REGISTRY[channel]) for channel in Channel] == [45, 10, 12]
    always = {
        kind for row in REGISTRY.values() for kind in row.values() if kind.reply.name in ("VALUE", "STATUS")
    }
    assert {type(question) for question, *_ in ANSWERS} == always


def test_the_always_answered_are_those_of_the_specification() -> None:
    always = {
        code for code, kind in REGISTRY[Channel.FRONTEND].items() if kind.reply.name in ("VALUE", "STATUS")
    }
    assert always == {1, 6, 11, 15, 17, 22, 24, 26, 28, 30, 31, 36, 40, 41, 42, 43, 44, 45}
    assert {code for code, kind in REGISTRY[Channel.BACKEND].items() if kind.reply.name != "ACK"} == {8}
    assert {code for code, kind in REGISTRY[Channel.GPU].items() if kind.reply.name != "NEVER"} == {
        1,
        3,
        10,
        11,
    }


def test_the_answer_of_postcopy() -> None:
    front, back = requester(protocol=POSTCOPY), responder(protocol=POSTCOPY)
    front.terms.postcopy = back.terms.postcopy = True
    data, _ = front.send(SetMemTable((REGION,)), [0])
    back.receive(data, spare_fds(1))
    mapped = raw(40, (0, 4, 1), *region(8, REGION))
    assert back.reply(back.next_event(), MemTable((REGION,))) == (frame(5, mapped, flags=0x4), [])
    front.receive(frame(5, mapped, flags=0x4))
    assert front.next_event().value == MemTable((REGION,))
    front.close()
    back.close()


XEN = Terms(protocol_features=ProtocolFeature.XEN_MMAP)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (
            raw(8 + 40, (0, 4, 1), *region(8, XEN_REGION), (40, 4, 0x102), (44, 4, 7)),
            SetMemTable((XEN_REGION,)),
        ),
        (raw(8 + 40, *region(8, XEN_REGION), (40, 4, 0x102), (44, 4, 7)), AddMemReg(XEN_REGION)),
        (raw(8 + 40, *region(8, XEN_REGION), (40, 4, 0x102), (44, 4, 7)), RemMemReg(XEN_REGION)),
    ],
    ids=label,
)
def test_xen_regions(payload: bytes, message: Message) -> None:
    assert message.encode(XEN) == payload
    assert type(message).decode(payload, XEN) == message
