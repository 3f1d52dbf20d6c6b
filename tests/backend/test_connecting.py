# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A server that connects to front-ends that listen, blocking and in an event loop."""

import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vhost
from tests.backend.echo import Echo
from tests.backend.peer import TIMEOUT, Peer, footprint
from tests.backend.serving import Serving
from vhost.backend import dial
from vhost.io import Listener
from vhost.protocol import GetVringBase, SetMemTable, SetVringEnable

pytestmark = pytest.mark.usefixtures("unix_build")


@pytest.fixture(params=["threads", "asyncio"])
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    before = footprint()
    yield request.param
    assert footprint() == before


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    listener = Listener(path)
    listener.sock.settimeout(TIMEOUT)
    try:
        yield listener.sock
    finally:
        listener.close()


def accepted(listener: socket.socket) -> Peer:
    return Peer(listener.accept()[0])


def test_connects_again_after_each_session(mode: str, tmp_path: Path) -> None:
    with listening(tmp_path / "s") as listener, Serving(Echo(), mode, tmp_path / "s", connect=True) as server:
        for _ in range(3):
            with accepted(listener) as peer:
                assert peer.ready().request(b"abc") == b"cba"
        server.lines.wait("connection ended", level="INFO", count=3)
        assert len(server.lines.having("front-end connected", "INFO")) >= 3


def test_waits_for_a_front_end_that_listens_later(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "later"
    with Serving(Echo(), mode, path, connect=True) as server:
        for turn in (1, 2):
            server.lines.wait("cannot connect to .*later: No such file", count=turn)
            with listening(path) as listener, accepted(listener) as peer:
                assert peer.ready().request(b"abc") == b"cba"
        server.lines.wait("cannot connect to .*later: No such file", count=3)
        # The path of a front-end that died is as good as none.
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with listening(path) as listener, accepted(listener) as peer:
            assert peer.ready().request(b"abc") == b"cba"


def test_pauses_grow_until_a_front_end_uses_the_device(mode: str, tmp_path: Path) -> None:
    with listening(tmp_path / "s") as listener, Serving(Echo(), mode, tmp_path / "s", connect=True) as server:
        times = []
        for _ in range(5):
            listener.accept()[0].close()
            times.append(time.monotonic())
        # Connections are accepted a little late, or a lot; the last pause is long all the same.
        assert times[4] - times[0] > 1.4
        with accepted(listener) as peer:
            assert peer.ready().request(b"abc") == b"cba"
        ended = time.monotonic()
        listener.accept()[0].close()
        assert time.monotonic() - ended < times[4] - times[0]
        # The first in vain, the one that was used, and the first in vain after it.
        server.lines.wait("connection ended", count=7)
        assert len(server.lines.having("front-end connected", "INFO")) == 2
        assert len(server.lines.having("connection ended", "INFO")) == 3


def test_a_front_end_goes_on_with_a_back_end_that_comes_back(mode: str, tmp_path: Path) -> None:
    """As DPDK does: it disables and stops the rings of the last one, and is the owner already."""
    with listening(tmp_path / "s") as listener, Serving(Echo(), mode, tmp_path / "s", connect=True) as server:
        with accepted(listener) as peer:
            assert peer.ready().request(b"abc") == b"cba"
        with accepted(listener) as peer:
            peer.sock.sendall(struct.pack("=5I", SetVringEnable.request, 1, 8, 0, 0))
            peer.sock.sendall(struct.pack("=5I", GetVringBase.request, 1, 8, 0, 0))
            assert struct.unpack("=5I", peer.sock.recv(100)) == (GetVringBase.request, 5, 8, 0, 0)
            peer.negotiate()
            peer.do(SetMemTable((peer.region(),)), [peer.ram])
            ring = peer.ring(0, 16)
            peer.start(ring)
            assert ring.request(b"abc") == b"cba"
        assert not server.lines.having("", "WARNING")


def test_tries_in_vain_are_told_once(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "_LONGEST", 0.01)
    with Serving(Echo(), mode, tmp_path / "s", connect=True) as server:
        server.lines.wait("trying again")
        time.sleep(0.3)  # some thirty tries
        assert len(server.lines.seen) == 2, server.lines.seen
        with listening(tmp_path / "s") as listener, accepted(listener) as peer:  # it has not given up
            assert peer.ready().request(b"abc") == b"cba"


def test_the_end_does_not_wait_for_the_next_try(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "_FIRST", 3600.0)
    monkeypatch.setattr(dial, "_LONGEST", 3600.0)
    with Serving(Echo(), mode, tmp_path / "s", connect=True) as server:
        server.lines.wait("trying again")


def refused(mode: str, path: Path, message: str) -> None:
    with (
        pytest.raises(OSError, match=f"cannot connect to {path}: {message}"),
        Serving(Echo(), mode, path, connect=True) as server,
    ):
        server.ended()


def test_path_that_is_no_socket(mode: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    refused(mode, tmp_path / "file", "it is no socket")
    refused(mode, tmp_path / "file" / "s", "Not a directory")
    refused(mode, tmp_path / ("x" * 200), "AF_UNIX path too long")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "datagrams"))
        refused(mode, tmp_path / "datagrams", "Protocol wrong type")


def test_socket_of_somebody_else(mode: str) -> None:
    root = not os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        with listening(path):
            path.chmod(0)
            Path(folder).chmod(0o711)
            if root:
                os.seteuid(65534)
            try:
                refused(mode, path, "Permission denied")
            finally:
                if root:
                    os.seteuid(0)


def test_exactly_one_place(tmp_path: Path) -> None:
    for where in ({"path": "p", "connect": "q"}, {"connect": "q", "fd": 0}, {}):
        with pytest.raises(ValueError, match="exactly one of path, connect, fd"):
            vhost.serve(Echo(), **where)  # type: ignore[arg-type]
