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

DEED = "serves our front-end: streams there and back"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), met(VSOCK.peer, deed=DEED)]

CID, PORT = 4, 5000
SIZE = 1 << 20


@pytest.fixture(params=[True, False], ids=["event_idx", "flags"])
def frontend(work: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Frontend]:
    path = work / "vsock.sock"
    options = ("--guest-cid", str(CID), "--socket", path, "--uds-path", work / "host")
    with (
        VSOCK.listening(*options, socket=path, log=tmp_path / "vsock.log") as daemon,
        connect(path, queues=3, event_idx=request.param) as frontend,
    ):
        assert struct.unpack("<Q", frontend.config(0, 8)) == (CID,)
        yield frontend
        assert daemon.running, daemon.tail()


def echo(listener: socket.socket, size: int) -> None:
    """Returns so many bytes to the first client, behind all of them, and hangs up."""
    with listener, listener.accept()[0] as client:
        client.sendall(client.recv(size, socket.MSG_WAITALL))


def test_a_stream_there_and_back(frontend: Frontend, work: Path) -> None:
    listener, place = socket.socket(socket.AF_UNIX), work / f"host_{PORT}"
    place.unlink(missing_ok=True)
    listener.bind(str(place))
    listener.listen()
    server = threading.Thread(target=echo, args=(listener, SIZE), daemon=True)
    server.start()
    stream, data = Stream(frontend, CID, PORT), random.Random(1).randbytes(SIZE)
    stream.send(data)
    assert stream.receive(SIZE) == data
    stream.end()
    server.join()
