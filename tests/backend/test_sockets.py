# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bytes and descriptors through real socket pairs."""

import os
import resource
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.backend.peer import footprint
from vhost.backend import Stop
from vhost.io import close_fds, recv_fds, send_all, send_fds, wait


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    before = footprint()
    left, right = socket.socketpair()
    with left, right:
        yield left, right
    assert footprint() == before


Pair = tuple[socket.socket, socket.socket]


@pytest.mark.parametrize("count", [0, 1, 8, 253])
def test_descriptors_arrive_and_are_close_on_exec(pair: Pair, count: int) -> None:
    left, right = pair
    reader, writer = os.pipe()
    assert send_fds(left, b"data", [reader] * count) == 4
    os.close(reader)
    data, fds = recv_fds(right, 100)
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


def test_no_descriptor_is_better_than_some(pair: Pair) -> None:
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
        assert recv_fds(right, 10) == (b"x", [])
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
