# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Messages that break the protocol: refused where the stream stays in step, else the connection ends."""

import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.backend.peer import GPA, PROTOCOL_FEATURES, RAM_SIZE, USER, Peer
from tests.backend.serving import Serving
from tests.hostile.raw import HEADER, NEED_REPLY, REPLY, VERSION, answer, send, survived
from vhost.protocol import GetFeatures, GetProtocolFeatures, GetQueueNum, SetProtocolFeatures

U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")
ADDR = struct.Struct("=IIQQQQ")
REGION = struct.Struct("=QQQQ")

SET_FEATURES, SET_MEM_TABLE, GPU_SET_SOCKET = 2, 5, 33
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE, IOTLB_MSG = 15, 16, 18, 22
GET_CONFIG, SET_CONFIG, GET_INFLIGHT_FD, ADD_MEM_REG, REM_MEM_REG = 24, 25, 31, 37, 38


def table(*regions: tuple[int, int, int, int]) -> bytes:
    return STATE.pack(len(regions), 0) + b"".join(REGION.pack(*region) for region in regions)


def one(guest: int, size: int, user: int, offset: int = 0) -> bytes:
    return bytes(8) + REGION.pack(guest, size, user, offset)


def addr(
    index: int = 0, flags: int = 0, desc: int = USER, used: int = USER + 0x2000, avail: int = USER + 0x1000
) -> bytes:
    return ADDR.pack(index, flags, desc, used, avail, 0)


@dataclass(frozen=True)
class Bad:
    """A message that is refused: with an ack that tells failure, and a line in the log."""

    name: str
    line: str
    request: int
    payload: bytes = b""
    fds: int | str = 0  # that many of guest memory, or another kind
    failure: bytes | None = None  # the answer of a message that has one of its own

    def __str__(self) -> str:
        return self.name


REFUSED = [
    Bad("unknown request", "request 99 .*is unknown", 99),
    Bad("request 0", "request 0 .*is unknown", 0),
    Bad("ungated request", "GET_INFLIGHT_FD is not allowed", GET_INFLIGHT_FD, bytes(24), failure=b""),
    Bad("ungated request with status", "IOTLB_MSG is not allowed", IOTLB_MSG, bytes(32)),
    Bad("unsupported request", "GPU_SET_SOCKET is not supported", GPU_SET_SOCKET, fds=1),
    Bad("payload too small", "SET_VRING_NUM has a payload of 4 bytes", SET_VRING_NUM, bytes(4)),
    Bad("payload missing", "SET_VRING_KICK.* has a payload of 0 bytes", SET_VRING_KICK, fds=1),
    Bad("payload too large", "SET_FEATURES has a payload of 16 bytes", SET_FEATURES, bytes(16)),
    Bad(
        "table shorter than its count",
        "SET_MEM_TABLE with 2 regions",
        SET_MEM_TABLE,
        STATE.pack(2, 0) + bytes(32),
        2,
    ),
    Bad(
        "table with too many regions",
        "SET_MEM_TABLE has 33 regions",
        SET_MEM_TABLE,
        STATE.pack(33, 0) + bytes(33 * 32),
        33,
    ),
    Bad(
        "descriptor missing, table",
        "(came with|has) 0 descriptors",
        SET_MEM_TABLE,
        table((GPA, 4096, USER, 0)),
    ),
    Bad("descriptor missing, kick", "(came with|has) 0 descriptors", SET_VRING_KICK, U64.pack(0)),
    Bad(
        "descriptor missing, region",
        "(came with|has) 0 descriptors",
        ADD_MEM_REG,
        one(GPA * 2, 4096, USER * 2),
    ),
    Bad("descriptor too many, kick", "(came with|has) 2 descriptors", SET_VRING_KICK, U64.pack(0), 2),
    Bad(
        "descriptor too many, table",
        "(came with|has) 3 descriptors",
        SET_MEM_TABLE,
        table((GPA, 4096, USER, 0)),
        3,
    ),
    Bad(
        "descriptor too many, features",
        "(came with|has) 250 descriptors",
        SET_FEATURES,
        U64.pack(1 << 30),
        250,
    ),
    Bad(
        "descriptor of a file",
        "kick descriptor of ring 0 is of file type '-'",
        SET_VRING_KICK,
        U64.pack(0),
        "file",
    ),
    Bad("descriptor of a directory", "call descriptor .* 'd'", SET_VRING_CALL, U64.pack(0), "directory"),
    Bad("descriptor of a device", "err descriptor .* 'c'", SET_VRING_ERR, U64.pack(0), "null"),
    Bad("feature not offered", r"0x10000000000 were not offered", SET_FEATURES, U64.pack(0x101_7000_0000)),
    Bad("protocol feature not offered", r"0x10000 were not", SET_PROTOCOL_FEATURES, U64.pack(1 << 16 | 8)),
    Bad(
        "overlap in guest memory",
        "SET_MEM_TABLE.*overlap",
        SET_MEM_TABLE,
        table((GPA, 0x2000, USER, 0), (GPA + 0x1000, 0x1000, USER + 0x10000, 0)),
        2,
    ),
    Bad(
        "overlap in user memory",
        "SET_MEM_TABLE.*overlap",
        SET_MEM_TABLE,
        table((GPA, 0x2000, USER, 0), (GPA + 0x10000, 0x1000, USER + 0x1000, 0)),
        2,
    ),
    Bad("same addresses twice", "ADD_MEM_REG.*overlap", ADD_MEM_REG, one(GPA, 0x1000, USER), 1),
    Bad(
        "same region, elsewhere",
        "ADD_MEM_REG.*overlap",
        ADD_MEM_REG,
        one(GPA, RAM_SIZE, USER + 0x1000),
        1,
    ),
    Bad("guest address wraps", "SET_MEM_TABLE", SET_MEM_TABLE, table((2**64 - 0x1000, 0x2000, USER, 0)), 1),
    Bad("user address wraps", "SET_MEM_TABLE", SET_MEM_TABLE, table((GPA, 0x2000, 2**64 - 0x1000, 0)), 1),
    Bad("offset wraps", "SET_MEM_TABLE", SET_MEM_TABLE, table((GPA, 0x2000, USER, 2**64 - 0x1000)), 1),
    Bad("no size", "SET_MEM_TABLE", SET_MEM_TABLE, table((GPA, 0, USER, 0)), 1),
    Bad("file too short", "SET_MEM_TABLE", SET_MEM_TABLE, table((GPA, RAM_SIZE + 0x1000, USER, 0)), 1),
    Bad("region of 2**63 bytes", "SET_MEM_TABLE", SET_MEM_TABLE, table((0, 1 << 63, 0, 0)), 1),
    Bad("region of an eventfd", "SET_MEM_TABLE", SET_MEM_TABLE, table((GPA, 0x1000, USER, 0)), "eventfd"),
    Bad("region that is not there", "REM_MEM_REG.*no such region", REM_MEM_REG, one(GPA, 4096, USER)),
    Bad("ring of 0", "SET_VRING_NUM.*0 entries", SET_VRING_NUM, STATE.pack(0, 0)),
    Bad("ring of 3", "SET_VRING_NUM.*3 entries", SET_VRING_NUM, STATE.pack(0, 3)),
    Bad("ring of 65536", "SET_VRING_NUM.*65536 entries", SET_VRING_NUM, STATE.pack(0, 65536)),
    Bad("ring of 2**31", "SET_VRING_NUM.*2147483648 entries", SET_VRING_NUM, STATE.pack(0, 1 << 31)),
    Bad("ring larger than the device's", "SET_VRING_NUM.*512 entries", SET_VRING_NUM, STATE.pack(0, 512)),
    Bad("ring index, size", "ring 2 of a device with 2", SET_VRING_NUM, STATE.pack(2, 16)),
    Bad("ring index, address", "ring 4294967295 of", SET_VRING_ADDR, addr(2**32 - 1)),
    Bad("ring index, base", "ring 256 of", SET_VRING_BASE, STATE.pack(256, 0)),
    Bad("ring index, stop", "ring 7 of", GET_VRING_BASE, STATE.pack(7, 0), failure=b""),
    Bad("ring index, kick", "ring 255 of", SET_VRING_KICK, U64.pack(255), 1),
    Bad("ring index, enable", "ring 3 of", SET_VRING_ENABLE, STATE.pack(3, 1)),
    Bad("base", "base 0x10000", SET_VRING_BASE, STATE.pack(0, 0x10000)),
    Bad("enable neither", "2 neither enables", SET_VRING_ENABLE, STATE.pack(0, 2)),
    Bad("address flags", "flags 0x2", SET_VRING_ADDR, addr(flags=2)),
    Bad("descriptor table outside", "descriptor table of 256 bytes at 0x10", SET_VRING_ADDR, addr(desc=0x10)),
    Bad("avail ring across the end", "avail ring of 38", SET_VRING_ADDR, addr(avail=USER + RAM_SIZE - 8)),
    Bad("used ring across the end", "used ring of 134", SET_VRING_ADDR, addr(used=USER + RAM_SIZE - 8)),
    Bad("used ring wraps", "used ring of 134", SET_VRING_ADDR, addr(used=2**64 - 4)),
    Bad("descriptor table misaligned", "multiple of 16", SET_VRING_ADDR, addr(desc=USER + 8)),
    Bad("avail ring misaligned", "multiple of 2", SET_VRING_ADDR, addr(avail=USER + 0x1001)),
    Bad("used ring misaligned", "multiple of 4", SET_VRING_ADDR, addr(used=USER + 0x2002)),
    Bad(
        "config beyond the end",
        "offset 256",
        GET_CONFIG,
        struct.pack("=III", 256, 4, 0) + bytes(4),
        failure=b"",
    ),
    Bad(
        "config that the device refuses", "6 bytes at 4", SET_CONFIG, struct.pack("=III", 4, 6, 0) + bytes(6)
    ),
]


def descriptors(peer: Peer, kind: int | str) -> list[int]:
    if isinstance(kind, int):
        return [os.dup(peer.ram) for _ in range(kind)]
    if kind == "file":
        with tempfile.TemporaryFile() as file:
            return [os.dup(file.fileno())]
    if kind == "eventfd":
        return [os.eventfd(0)]
    return [os.open({"directory": "/", "null": "/dev/null"}[kind], os.O_RDONLY)]


@pytest.mark.parametrize("bad", REFUSED, ids=str)
def test_bad_message_is_refused(server: Serving, bad: Bad) -> None:
    with survived(server) as peer:
        ring = peer.ready()
        fds = descriptors(peer, bad.fds)
        send(peer, bad.request, bad.payload, fds)
        for fd in fds:
            os.close(fd)
        request, flags, payload = answer(peer)
        assert (request, flags) == (bad.request, VERSION | REPLY)
        if bad.failure is None:
            assert U64.unpack(payload) != (0,)
        else:
            assert payload == bad.failure
        server.lines.wait(bad.line, level="WARNING")
        assert len(server.lines.having("", "WARNING")) == 1, "one line says it all"
        assert not server.lines.having("", "ERROR")
        if bad.request not in (SET_VRING_KICK,):
            assert ring.request(b"still") == b"llits"
        assert peer.value(GetQueueNum()) == 2


@pytest.mark.parametrize(
    "bad", [bad for bad in REFUSED if bad.failure is None and bad.request != IOTLB_MSG], ids=str
)
def test_bad_message_that_wants_no_reply_gets_none(server: Serving, bad: Bad) -> None:
    with survived(server) as peer:
        peer.ready()
        fds = descriptors(peer, bad.fds)
        send(peer, bad.request, bad.payload, fds, flags=VERSION)
        for fd in fds:
            os.close(fd)
        assert peer.value(GetQueueNum()) == 2  # the next answer is this one's
        server.lines.wait(bad.line, level="WARNING")


def _wrong_version(peer: Peer) -> None:
    send(peer, 1, flags=2)


def _reply_flag(peer: Peer) -> None:
    send(peer, 1, flags=VERSION | REPLY)


def _too_large(peer: Peer) -> None:
    send(peer, SET_FEATURES, size=1 << 20)


def _largest(peer: Peer) -> None:
    send(peer, 3, size=2**32 - 1, fds=[peer.ram] * 8)


def _end_in_header(peer: Peer) -> None:
    peer.sock.sendall(HEADER.pack(1, VERSION, 0)[:7])
    peer.sock.shutdown(1)


def _end_in_payload(peer: Peer) -> None:
    send(peer, SET_MEM_TABLE, table((GPA, RAM_SIZE, USER, 0))[:20], [peer.ram], size=40)
    peer.sock.shutdown(1)


def _noise(peer: Peer) -> None:
    peer.sock.sendall(bytes(range(256)) * 16)


@pytest.mark.parametrize(
    ("mischief", "line"),
    [
        (_wrong_version, "version"),
        (_reply_flag, "reply|answer"),
        (_too_large, "1048576"),
        (_largest, "4294967295"),
        (_end_in_header, "7|end"),
        (_end_in_payload, "20|end"),
        (_noise, "version"),
    ],
)
@pytest.mark.parametrize("running", [False, True], ids=["fresh", "running"])
def test_stream_out_of_step_ends_the_connection(
    server: Serving, mischief: Callable[[Peer], None], line: str, running: bool
) -> None:
    with survived(server) as peer:
        if running:
            peer.ready()
        mischief(peer)
        assert peer.ended()
        server.lines.wait(f"connection dropped: .*({line})", level="WARNING")


def test_peer_that_reads_no_answers_is_dropped(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("server", "aio"):
        monkeypatch.setattr(f"vhost.backend.{module}.SEND_TIMEOUT", 0.05)
    with survived(server) as peer:
        peer.sock.settimeout(5)
        question = HEADER.pack(1, VERSION, 0) * 256
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                peer.sock.sendall(question)
        server.lines.wait("connection dropped: the peer has read nothing for 0.05 s", level="WARNING")


def test_questions_before_set_owner_are_answered(server: Serving) -> None:
    with survived(server) as peer:
        peer.negotiate()
        assert peer.value(GetQueueNum()) == 2
        peer.do(SetProtocolFeatures(peer.value(GetProtocolFeatures()) & PROTOCOL_FEATURES))
        assert peer.value(GetFeatures())
        assert not server.lines.having("", "WARNING")


def test_messages_may_come_in_pieces_and_in_heaps(server: Serving) -> None:
    with survived(server) as peer:
        message = HEADER.pack(1, VERSION, 0)
        for byte in message * 2:
            peer.sock.sendall(bytes([byte]))
        peer.sock.sendall(message * 100)
        assert {answer(peer) for _ in range(102)} == {(1, VERSION | REPLY, U64.pack(0xF_7400_0000))}


def test_need_reply_without_reply_ack_is_ignored(server: Serving) -> None:
    with survived(server) as peer:
        send(peer, 3, flags=VERSION | NEED_REPLY)
        send(peer, 99, flags=VERSION | NEED_REPLY)
        send(peer, 1)
        assert answer(peer)[0] == 1
