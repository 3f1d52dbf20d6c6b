# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Our frontend drives virtiofsd, a backend of other authors (Rust): files of this machine over FUSE."""

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.backends import VIRTIOFSD
from tests.lab.fuse import Fuse
from tests.lab.peers import met
from vhost.frontend import connect

DEED = "serves our front-end: FUSE session, files written, read and forgotten"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), met(VIRTIOFSD.peer, deed=DEED)]

PIECE = 64 << 10


@pytest.fixture(params=[1, 300], ids=["one region", "300 regions"])
def fuse(work: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fuse]:
    (tmp_path / "shared").mkdir()
    socket = work / "fs.sock"
    options = ("--shared-dir", tmp_path / "shared", "--tag", "lab", "--sandbox", "none")
    with (
        VIRTIOFSD.listening(*options, "--socket-path", socket, socket=socket, log=tmp_path / "log") as daemon,
        connect(socket, queues=2, regions=request.param) as frontend,
    ):
        assert frontend.config(0, 4) == b"lab\0"
        yield Fuse(frontend)
        frontend.close()
        assert daemon.wait(20) == 0, daemon.tail()  # it serves one connection


def test_files_are_written_and_read(fuse: Fuse, tmp_path: Path) -> None:
    assert fuse.version[0] == 7
    data = random.Random(1).randbytes(4 * PIECE)
    node, handle = fuse.create("new")
    for place in range(0, len(data), PIECE):
        assert fuse.write(node, handle, place, data[place : place + PIECE]) == PIECE
    assert fuse.read(node, handle, PIECE - 7, PIECE) == data[PIECE - 7 :][:PIECE]
    assert fuse.read(node, handle, len(data) - 9, PIECE) == data[-9:]
    fuse.release(node, handle)
    assert (tmp_path / "shared/new").read_bytes() == data
    (tmp_path / "shared/old").touch()
    fuse.forget(fuse.lookup("old"))
    with pytest.raises(OSError, match="ENOENT") as missing:
        fuse.lookup("none")
    assert missing.value.errno == errno.ENOENT
