# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bytes and descriptors through real socket pairs."""

import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from tests.backend.peer import footprint
from vhost.backend import Stop
from vhost.io import Standing, Stream, close_fds, recv_fds, send_all, send_fds, wait


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    before = footprint()
    left, right = socket.socketpair()
    with left, right:
        yield left, right
    assert footprint() == before


Pair = tuple[socket.socket, socket.socket]


Receive = Callable[[socket.socket, int], tuple[bytes, list[int]] | None]


def stream_of(sock: socket.socket, size: int = 100, stop: Stop | None = None) -> Stream:
    stream = Stream(size, stop)
    stream.adopt(sock.fileno())
    return stream


def by_stream(sock: socket.socket, size: int) -> tuple[bytes, list[int]] | None:
    return stream_of(sock, size).receive()


def from_stream(sock: socket.socket, data: bytes, fds: Sequence[int]) -> int:
    assert stream_of(sock).send(data, fds)
    return len(data)


both = pytest.mark.parametrize("receive", [recv_fds, by_stream])


@both
@pytest.mark.parametrize("send", [send_fds, from_stream])
@pytest.mark.parametrize("count", [0, 1, 8, 253])
def test_descriptors_arrive_and_are_close_on_exec(
    pair: Pair, count: int, send: Callable[[socket.socket, bytes, Sequence[int]], int], receive: Receive
) -> None:
    left, right = pair
    reader, writer = os.pipe()
    assert send(left, b"data", [reader] * count) == 4
    os.close(reader)
    got = receive(right, 100)
    assert got is not None
    data, fds = got
    assert (data, len(fds)) == (b"data", count)
    assert not any(os.get_inheritable(fd) for fd in fds)
    if fds:
        os.write(writer, b"x")
        assert os.read(fds[-1], 1) == b"x"
    close_fds([*fds, writer])


def test_end_and_nothing_yet(pair: Pair) -> None:
    left, right = pair
    right.setblocking(False)
    with pytest.raises(BlockingIOError):
        recv_fds(right, 1)
    left.close()
    assert recv_fds(right, 1) == (b"", [])


def test_a_stream_ends_with_its_peer_or_its_stop(pair: Pair) -> None:
    left, right = pair
    with Stop() as stop:
        stream = stream_of(right, 4, stop)
        left.send(b"12345")
        assert stream.receive() == (b"1234", [])
        assert stream.receive() == (b"5", [])
        timer = threading.Timer(0.05, stop.set)
        timer.start()
        assert stream.receive() is None
        timer.join()
        left.send(b"6")
        assert stream.receive() is None, "stop comes first"
    stream = stream_of(right, 4)
    assert stream.receive() == (b"6", [])
    left.close()
    assert stream.receive() == (b"", [])
    right.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.receive()


def test_signals_are_handled_while_a_stream_waits(pair: Pair) -> None:
    left, right = pair
    before = signal.signal(signal.SIGUSR1, lambda *_: left.send(b"from the handler"))
    try:
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGUSR1])
        timer.start()
        assert stream_of(right).receive() == (b"from the handler", [])
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_standing_answers_are_given_to_what_comes_alone(pair: Pair) -> None:
    left, right = pair
    question, other = b"what is it? ", b"how are you?"
    standing = Standing([(question, b"it is nothing"), (other, b"fine")])
    stream = stream_of(right)

    def ask(*messages: bytes, fds: Sequence[int] = ()) -> tuple[bytes, list[int]] | None:
        for message in messages:
            send_fds(left, message, fds)
        return stream.receive(standing)

    left.send(question)
    thread = threading.Thread(target=stream.receive, args=(standing,))
    thread.start()
    left.settimeout(5)
    assert left.recv(100) == b"it is nothing"
    left.send(other)
    assert left.recv(100) == b"fine"
    left.send(b"end")
    thread.join()

    assert ask(question + b"more") == (question + b"more", [])
    assert ask(question[:6]) == (question[:6], [])
    assert ask(b"x" * 12) == (b"x" * 12, [])
    got = ask(question, fds=[left.fileno()])
    assert got is not None
    assert got[0] == question
    assert len(got[1]) == 1
    close_fds(got[1])
    left.send(question)
    assert stream.receive(None) == (question, [])
    # Whoever does not read gets no answer by this way: it would have to be waited for.
    right.setblocking(False)
    while True:
        try:
            right.send(bytes(1 << 16))
        except BlockingIOError:
            break
    assert ask(question) == (question, [])


@both
def test_no_descriptor_is_better_than_some(pair: Pair, receive: Receive) -> None:
    left, right = pair
    send_fds(left, b"x", [left.fileno()] * 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (right.fileno() + 64, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                spare.append(os.dup(right.fileno()))
        close_fds(spare[:4])  # four of the eight fit
        assert receive(right, 10) == (b"x", [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close_fds(spare[4:])


class SendAll(Protocol):
    def __call__(
        self,
        sock: socket.socket,
        data: bytes,
        fds: Sequence[int] = ...,
        *,
        timeout: float | None = ...,
        stop: Stop | None = ...,
    ) -> bool: ...


def stream_send(
    sock: socket.socket,
    data: bytes,
    fds: Sequence[int] = (),
    *,
    timeout: float | None = None,
    stop: Stop | None = None,
) -> bool:
    return stream_of(sock, stop=stop).send(data, fds, timeout=timeout)


senders = pytest.mark.parametrize("send", [send_all, stream_send])


@senders
def test_sending_waits_for_the_reader(pair: Pair, send: SendAll) -> None:
    left, right = pair
    left.setblocking(False)
    data = os.urandom(1 << 20)
    got = bytearray()
    fds: list[int] = []

    def read() -> None:
        while len(got) < len(data):
            more, came = recv_fds(right, 1 << 16)
            got.extend(more)
            fds.extend(came)

    reader = threading.Thread(target=read)
    reader.start()
    assert send(left, data, [left.fileno()], timeout=10)
    reader.join()
    assert bytes(got) == data
    assert len(fds) == 1
    close_fds(fds)


@senders
def test_sending_gives_up(pair: Pair, send: SendAll) -> None:
    left, right = pair
    left.setblocking(False)
    with pytest.raises(TimeoutError, match=r"nothing for 0\.01 s"):
        send(left, bytes(1 << 22), timeout=0.01)
    with Stop() as stop:
        assert not stop.is_set()
        stop.set()
        stop.set()
        assert stop.is_set()
        assert not send(left, bytes(1 << 22), stop=stop)
    right.close()
    with pytest.raises(OSError, match="Broken pipe"):
        send(left, b"x")


def test_a_stream_accepts_until_it_is_stopped(tmp_path: Path) -> None:
    before = footprint()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client, Stop() as stop:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        listener.setblocking(False)
        client.connect(str(tmp_path / "sock"))
        client.send(b"hello")
        stream = Stream(100, stop)
        assert stream.accept(listener)
        assert stream.receive() == (b"hello", [])
        assert stream.send(b"welcome")
        assert client.recv(100) == b"welcome"
        stream.close()
        assert client.recv(100) == b""
        stream.close()
        timer = threading.Timer(0.05, stop.set)
        timer.start()
        assert not stream.accept(listener)
        timer.join()
        with pytest.raises(OSError, match="Invalid argument"):
            Stream(100).accept(client)
    assert footprint() == before


def test_wait(pair: Pair) -> None:
    left, right = pair
    with pytest.raises(TimeoutError):
        wait(right, select.POLLIN, timeout=0.01)
    left.close()
    assert wait(right, select.POLLIN)
