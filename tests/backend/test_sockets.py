# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bytes and descriptors through real socket pairs."""

import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.backend.peer import footprint
from vhost.backend import Stop
from vhost.io import Receiver, Standing, close_fds, recv_fds, send_all, send_fds, wait


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    before = footprint()
    left, right = socket.socketpair()
    with left, right:
        yield left, right
    assert footprint() == before


Pair = tuple[socket.socket, socket.socket]


Receive = Callable[[socket.socket, int], tuple[bytes, list[int]] | None]


def by_receiver(sock: socket.socket, size: int) -> tuple[bytes, list[int]] | None:
    return Receiver(sock, size).receive()


both = pytest.mark.parametrize("receive", [recv_fds, by_receiver])


@both
@pytest.mark.parametrize("count", [0, 1, 8, 253])
def test_descriptors_arrive_and_are_close_on_exec(pair: Pair, count: int, receive: Receive) -> None:
    left, right = pair
    reader, writer = os.pipe()
    assert send_fds(left, b"data", [reader] * count) == 4
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


def test_a_receiver_ends_with_its_peer_or_its_stop(pair: Pair) -> None:
    left, right = pair
    with Stop() as stop:
        receiver = Receiver(right, 4, stop)
        left.send(b"12345")
        assert receiver.receive() == (b"1234", [])
        assert receiver.receive() == (b"5", [])
        timer = threading.Timer(0.05, stop.set)
        timer.start()
        assert receiver.receive() is None
        timer.join()
        left.send(b"6")
        assert receiver.receive() is None, "stop comes first"
    receiver = Receiver(right, 4)
    assert receiver.receive() == (b"6", [])
    left.close()
    assert receiver.receive() == (b"", [])
    right.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        receiver.receive()


def test_signals_are_handled_while_a_receiver_waits(pair: Pair) -> None:
    left, right = pair
    before = signal.signal(signal.SIGUSR1, lambda *_: left.send(b"from the handler"))
    try:
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGUSR1])
        timer.start()
        assert Receiver(right, 100).receive() == (b"from the handler", [])
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_standing_answers_are_given_to_what_comes_alone(pair: Pair) -> None:
    left, right = pair
    question, other = b"what is it? ", b"how are you?"
    standing = Standing([(question, b"it is nothing"), (other, b"fine")])
    receiver = Receiver(right, 100)

    def ask(*messages: bytes, fds: Sequence[int] = ()) -> tuple[bytes, list[int]] | None:
        for message in messages:
            send_fds(left, message, fds)
        return receiver.receive(standing)

    left.send(question)
    thread = threading.Thread(target=receiver.receive, args=(standing,))
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
    assert receiver.receive(None) == (question, [])
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


def test_send_all_waits_for_the_reader(pair: Pair) -> None:
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
    assert send_all(left, data, [left.fileno()], timeout=10)
    reader.join()
    assert bytes(got) == data
    assert len(fds) == 1
    close_fds(fds)


def test_send_all_gives_up(pair: Pair) -> None:
    left, _ = pair
    left.setblocking(False)
    with pytest.raises(TimeoutError, match=r"nothing for 0\.01 s"):
        send_all(left, bytes(1 << 22), timeout=0.01)
    with Stop() as stop:
        assert not stop.is_set()
        stop.set()
        stop.set()
        assert stop.is_set()
        assert not send_all(left, bytes(1 << 22), stop=stop)


def test_wait(pair: Pair) -> None:
    left, right = pair
    with pytest.raises(TimeoutError):
        wait(right, select.POLLIN, timeout=0.01)
    left.close()
    assert wait(right, select.POLLIN)
