# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Backends that refuse, lie, fall silent or go away: the right exception, soon, and nothing left behind."""

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vhost
from tests.frontend.fake import FEATURES, PROTOCOL, Fake
from vhost.errors import RefusedError, RemoteProtocolError
from vhost.protocol import (
    U64,
    Empty,
    GetConfig,
    GetFeatures,
    GetProtocolFeatures,
    GetVringBase,
    Message,
    ProtocolFeature,
    Request,
    SetConfig,
    SetFeatures,
    SetMemTable,
    SetOwner,
    SetVringEnable,
    SetVringKick,
    SetVringNum,
    VringBase,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

Step = Callable[[Fake, Request], None]


def answer(request: int, payload: bytes, flags: int = 5) -> bytes:
    return struct.pack("=III", request, flags, len(payload)) + payload


def refuse(fake: Fake, request: Request) -> None:
    fake.ack(request, 22)


def silence(fake: Fake, request: Request) -> None:
    pass


def hang_up(fake: Fake, request: Request) -> None:
    fake.hang_up()


def raw(data: bytes) -> Step:
    def step(fake: Fake, request: Request) -> None:
        fake.write(data)

    return step


def raw_and_hang_up(data: bytes) -> Step:
    def step(fake: Fake, request: Request) -> None:
        fake.write(data)
        fake.hang_up()

    return step


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (SetOwner, "SET_OWNER"),
        (SetFeatures, "SET_FEATURES"),
        (SetMemTable, "SET_MEM_TABLE"),
        (SetVringNum, "SET_VRING_NUM"),
        (SetVringKick, "SET_VRING_KICK"),
        (SetVringEnable, "SET_VRING_ENABLE"),
    ],
)
def test_refused_while_connecting(message: type[Message], name: str) -> None:
    with Fake(script={message: refuse}) as fake, pytest.raises(RefusedError, match=f"{name}.*0x16") as caught:
        vhost.connect(fake.peer)
    assert (caught.value.request, caught.value.code) == (name, 22)


def test_a_refusal_is_no_end() -> None:
    with Fake(script={SetConfig: refuse}) as fake, vhost.connect(fake.peer) as device:
        with pytest.raises(RefusedError, match="SET_CONFIG"):
            device.set_config(0, b"x")
        assert device.config(2, 3) == b"\2\3\4"


def test_configuration_that_is_not_there() -> None:
    def fail(fake: Fake, request: Request) -> None:
        fake.ack(request, 1)

    with (
        Fake(script={GetConfig: fail}) as fake,
        vhost.connect(fake.peer) as device,
        pytest.raises(RefusedError, match="GET_CONFIG"),
    ):
        device.config(0, 4)


@pytest.mark.parametrize(
    "lie",
    [
        answer(24, struct.pack("=III", 0, 4, 0) + b"1234"),  # half of it
        answer(24, struct.pack("=III", 4, 8, 0) + b"12345678"),  # another half
        answer(24, struct.pack("=III", 0, 9, 0) + b"12345678"),  # less than it says
        answer(24, b"1234"),  # no header
    ],
)
def test_configuration_that_was_not_asked_for(lie: bytes) -> None:
    with (
        Fake(script={GetConfig: raw(lie)}) as fake,
        vhost.connect(fake.peer) as device,
    ):
        with pytest.raises(RemoteProtocolError, match=r"GET_CONFIG|ConfigReply"):
            device.config(0, 8)
        with pytest.raises(ConnectionAbortedError, match="GET_FEATURES not sent"):
            device.exchange(GetFeatures())


@pytest.mark.parametrize(
    "garbage",
    [
        answer(1, bytes(8), flags=6),  # version 2
        answer(1, bytes(8), flags=1),  # not a reply
        answer(2, bytes(8)),  # the reply to something else
        answer(1, bytes(7)),  # too short
        answer(1, bytes(16)),  # too long
        struct.pack("=III", 1, 5, 1 << 31),  # far too long
        bytes(range(256)),
    ],
)
def test_garbage(garbage: bytes) -> None:
    with Fake(script={GetFeatures: raw(garbage)}) as fake, pytest.raises(RemoteProtocolError):
        vhost.connect(fake.peer)


def test_an_answer_without_value() -> None:
    with (
        Fake(script={GetFeatures: raw(answer(1, b""))}) as fake,
        pytest.raises(RefusedError, match="GET_FEATURES"),
    ):
        vhost.connect(fake.peer)


def test_the_base_of_another_ring() -> None:
    def lie(fake: Fake, request: Request) -> None:
        fake.reply(request, VringBase(7, 0))

    with (
        Fake(script={GetVringBase: lie}) as fake,
        vhost.connect(fake.peer) as device,
        pytest.raises(RemoteProtocolError, match="queue 0"),
    ):
        device.stop(0)


@pytest.mark.parametrize("message", [GetFeatures, GetProtocolFeatures, SetMemTable, SetVringEnable])
def test_closed_instead_of_an_answer(message: type[Message]) -> None:
    with (
        Fake(script={message: hang_up}) as fake,
        pytest.raises(ConnectionResetError, match=f"closed the connection at {message.name}"),
    ):
        vhost.connect(fake.peer)


def test_closed_in_the_middle_of_an_answer() -> None:
    half = answer(1, bytes(8))[:15]
    with (
        Fake(script={GetFeatures: raw_and_hang_up(half)}) as fake,
        pytest.raises(RemoteProtocolError),
    ):
        vhost.connect(fake.peer)


def test_closed_without_acknowledgements() -> None:
    with (
        Fake(protocol=ProtocolFeature.MQ, script={SetVringKick: hang_up}) as fake,
        pytest.raises(ConnectionResetError),
    ):
        vhost.connect(fake.peer)


@pytest.mark.parametrize("message", [GetFeatures, SetOwner])
def test_silence(message: type[Message]) -> None:
    with (
        Fake(script={message: silence}) as fake,
        pytest.raises(TimeoutError, match=rf"waited 0\.05 s for the answer to {message.name}"),
    ):
        vhost.connect(fake.peer, timeout=0.05)


def test_the_limit_is_for_all_of_it() -> None:
    def drip(fake: Fake, request: Request) -> None:
        for byte in fake.encode(request, U64(FEATURES))[:-1]:
            fake.write(bytes([byte]))
            time.sleep(0.03)

    start = time.monotonic()
    with Fake(script={GetFeatures: drip}) as fake, pytest.raises(TimeoutError, match="GET_FEATURES"):
        vhost.connect(fake.peer, timeout=0.1)
    assert time.monotonic() - start < 5


def test_an_answer_in_pieces() -> None:
    def pieces(fake: Fake, request: Request) -> None:
        for byte in fake.encode(request, U64(FEATURES)):
            fake.write(bytes([byte]))

    with Fake(script={GetFeatures: pieces}) as fake, vhost.connect(fake.peer) as device:
        assert device.offered_features == FEATURES


def test_a_late_answer_is_not_taken_for_another() -> None:
    with Fake(script={SetConfig: silence}) as fake, vhost.connect(fake.peer, timeout=0.05) as device:
        with pytest.raises(TimeoutError, match="SET_CONFIG"):
            device.set_config(0, b"x")
        with pytest.raises(
            ConnectionAbortedError, match="GET_CONFIG not sent: SET_CONFIG ended with Timeout"
        ):
            device.config(0, 1)


def test_a_backend_that_does_not_read() -> None:
    # Nobody serves the other end, so the socket's buffer fills up.
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(bytes(1024))
        with pytest.raises(TimeoutError, match="for the backend to read GET_FEATURES"):
            vhost.connect(ours, timeout=0.05)


def test_descriptors_with_an_answer_are_closed() -> None:
    def with_fd(fake: Fake, request: Request) -> None:
        fake.write(fake.encode(request, U64(FEATURES)), [fake.sock.fileno()] * 3)

    with Fake(script={GetFeatures: with_fd}) as fake, pytest.raises(RemoteProtocolError, match="descriptors"):
        vhost.connect(fake.peer)


def test_descriptors_with_half_an_answer_are_closed() -> None:
    def half(fake: Fake, request: Request) -> None:
        fake.write(fake.encode(request, U64(FEATURES))[:-1], [fake.sock.fileno()] * 3)

    with Fake(script={GetFeatures: half}) as fake, pytest.raises(TimeoutError):
        vhost.connect(fake.peer, timeout=0.05)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.sock"):
        vhost.connect(tmp_path / "absent.sock")
    left = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    with pytest.raises(ConnectionRefusedError, match=r"left\.sock"):
        vhost.connect(left)


def test_nobody_accepts(tmp_path: Path) -> None:
    path = tmp_path / "busy.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        with pytest.raises(TimeoutError, match=r"for .*busy\.sock to accept"):
            vhost.connect(path, timeout=0.05)


def test_raw_exchange() -> None:
    with Fake() as fake, vhost.connect(fake.peer) as device:
        assert device.exchange(GetFeatures()) == U64(FEATURES)
        assert device.exchange(SetOwner()) is None
        assert not isinstance(device.exchange(GetProtocolFeatures()), Empty)
        assert device.offered_protocol_features == PROTOCOL


def test_after_the_end() -> None:
    with Fake() as fake:
        device = vhost.connect(fake.peer)
        queue = device.queue(0)
        token = queue.submit(b"x")
        device.close()
        device.close()
        with pytest.raises(ConnectionAbortedError, match="GET_CONFIG not sent: this side closed"):
            device.config(0, 1)
        with pytest.raises(ConnectionAbortedError, match="queue 0 is closed"):
            queue.submit(b"x")
        with pytest.raises(ConnectionAbortedError, match="queue 0 is closed"):
            queue.wait(token)
