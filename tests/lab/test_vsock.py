# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Our frontend drives vhost-device-vsock, a backend of other authors : streams to our sockets."""

import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.backends import VSOCK
from tests.lab.peers import met
from tests.lab.vsock import Stream
from vhost.frontend import Frontend, connect

DEED = "serves our front-end: streams of a MiB there and back, three connections"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), met(VSOCK.peer, deed=DEED)]

CID, PORT = 4, 5000
SIZE = 1 << 20


@pytest.fixture(scope="module")
def path(work: Path, logs: Path) -> Iterator[Path]:
    path = work / "vsock.sock"
    options = ("--guest-cid", str(CID), "--socket", path, "--uds-path", work / "host")
    with VSOCK.listening(*options, socket=path, log=logs / "vsock.log") as daemon:
        yield path
        assert daemon.running, daemon.tail()


@pytest.fixture
def frontend(path: Path) -> Iterator[Frontend]:
    with connect(path, queues=3) as frontend:
        assert struct.unpack("<Q", frontend.config(0, 8)) == (CID,)
        yield frontend


def echo(listener: socket.socket, size: int) -> None:
    """Returns so many bytes to the first client, behind all of them, and hangs up."""
    with listener, listener.accept()[0] as client:
        client.sendall(client.recv(size, socket.MSG_WAITALL))


@pytest.mark.parametrize("turn", range(3))
def test_a_stream_there_and_back(frontend: Frontend, work: Path, turn: int) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(work / f"host_{PORT + turn}"))
    listener.listen()
    server = threading.Thread(target=echo, args=(listener, SIZE), daemon=True)
    server.start()
    stream, data = Stream(frontend, CID, PORT + turn), random.Random(turn).randbytes(SIZE)
    stream.send(data)
    assert stream.receive(SIZE) == data
    stream.end()
    server.join()
