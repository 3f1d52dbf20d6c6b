# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where the server's socket comes from, and what is left of it."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import vhost
from tests.backend.echo import Echo
from tests.backend.peer import TIMEOUT, Peer, footprint
from vhost.backend import Stop
from vhost.backend.listen import Source
from vhost.errors import DeviceError

ROOT = Path(__file__).parents[2]
LISTEN_FDS = """
import os, signal, sys
sys.path.append(sys.argv[2])
import vhost
from tests.backend.echo import Echo
from vhost.backend import Stop
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="x")
stop = Stop()
stop.on_signals(signal.SIGTERM)
vhost.serve(Echo(), listen_fds=True, stop=stop)
assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & set(os.environ)
"""


@pytest.fixture(autouse=True)
def _nothing_left() -> object:
    before = footprint()
    yield
    assert footprint() == before


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    return sock


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o640), (0o007, 0o660), (0, 0o660), (0o077, 0o600)])
def test_path_is_for_owner_and_group(tmp_path: Path, umask: int, mode: int) -> None:
    old = os.umask(umask)
    try:
        source = Source(tmp_path / "socket")
    finally:
        os.umask(old)
    assert (tmp_path / "socket").stat().st_mode & 0o777 == mode
    assert source.listening
    source.close()
    assert not (tmp_path / "socket").exists()


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    source = Source(path)
    connected(path).close()
    source.close()


def test_path_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = Source(path)
    with pytest.raises(OSError, match="another process listens") as caught:
        Source(path)
    assert caught.value.errno == errno.EADDRINUSE
    connected(path).close()
    first.close()


def test_path_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="is no socket"):
        Source(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["nowhere/socket", "x" * 200])
def test_path_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=r"cannot listen on"):
        Source(tmp_path / name)


def test_only_what_was_bound_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = Source(path)
    path.unlink()
    second = Source(path)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_exactly_one_source() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Source()
    with pytest.raises(ValueError, match="exactly one"):
        Source("path", fd=3)


def test_descriptor_must_be_a_unix_stream_socket() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError, match=f"fd {reader} cannot be used as a socket"):
        Source(fd=reader)
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match="no Unix stream socket"):
        Source(sock=socket.socket(socket.AF_INET, socket.SOCK_STREAM))


@pytest.mark.usefixtures("unix_build")
@pytest.mark.parametrize("as_fd", [True, False])
def test_connected_socket_is_served_until_its_peer_goes(as_fd: bool) -> None:
    ours, theirs = socket.socketpair()
    where = {"fd": ours.detach()} if as_fd else {"sock": ours}
    server = threading.Thread(target=vhost.serve, args=(Echo(),), kwargs=where)
    server.start()
    with Peer(theirs) as peer:
        assert peer.ready().request(b"fd") == b"df"
    server.join(TIMEOUT)
    assert not server.is_alive()


@pytest.mark.usefixtures("unix_build")
def test_listening_descriptor_is_accepted_from(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    with Stop() as stop:
        server = threading.Thread(
            target=vhost.serve, args=(Echo(),), kwargs={"fd": listener.detach(), "stop": stop}
        )
        server.start()
        for _ in range(2):
            with Peer(connected(tmp_path / "socket")) as peer:
                assert peer.ready().request(b"fd") == b"df"
        stop.set()
        server.join(TIMEOUT)
        assert not server.is_alive()
    assert (tmp_path / "socket").exists()  # not ours to remove


@pytest.mark.usefixtures("unix_build")
def test_socket_from_systemd_and_sigterm(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        fd = listener.fileno()
        command = [sys.executable, "-c", LISTEN_FDS, str(fd), str(ROOT)]
        with (
            subprocess.Popen(command, pass_fds=[fd]) as process,
            Peer(connected(tmp_path / "socket")) as peer,
        ):
            assert peer.ready().request(b"fd") == b"df"
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT) == 0


@pytest.mark.parametrize(
    ("pid", "count", "line"),
    [
        (None, None, "not set"),
        ("1", "1", "LISTEN_PID is 1, but"),
        ("own", "2", "exactly one"),
        ("own", "0", "exactly one"),
        ("own", "x", "exactly one"),
    ],
)
def test_bad_socket_activation(
    monkeypatch: pytest.MonkeyPatch, pid: str | None, count: str | None, line: str
) -> None:
    for name, value in (("LISTEN_PID", pid), ("LISTEN_FDS", count)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(os.getpid()) if value == "own" else value)
    with pytest.raises(OSError, match=line):
        Source(listen_fds=True)
    assert "LISTEN_FDS" not in os.environ


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("num_queues", 0),
        ("num_queues", 257),
        ("max_queue_size", 3),
        ("max_queue_size", 65536),
        ("features", 1 << 64),
    ],
)
def test_bad_device_is_refused_before_anything_is_opened(tmp_path: Path, attribute: str, value: int) -> None:
    device = Echo()
    setattr(device, attribute, value)
    with pytest.raises(DeviceError, match=attribute):
        vhost.serve(device, tmp_path / "socket")
    assert not (tmp_path / "socket").exists()
