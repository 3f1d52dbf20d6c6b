# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Frontends that listen, and backends that connect to them, again when they were away."""

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vhost
from tests.frontend.fake import Fake
from tests.frontend.served import Reverse
from tests.frontend.test_link import refuse
from vhost.backend import Stop
from vhost.errors import RefusedError
from vhost.frontend.listen import Wishes
from vhost.protocol import SetMemTable

pytestmark = pytest.mark.usefixtures("no_leaks")
CONNECTS = [vhost.connect, vhost.connect_async]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "frontend"
    yield path
    assert not path.exists()


@contextmanager
def connecting(device: vhost.Device, path: Path) -> Iterator[None]:
    """A backend that connects to `path` and serves `device`."""
    with Stop() as stop:
        thread = threading.Thread(
            target=vhost.serve, args=(device,), kwargs={"connect": path, "stop": stop}, name="backend"
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()


@pytest.mark.usefixtures("unix_build")
def test_a_backend_connects(path: Path) -> None:
    # The backend's lines come first: it tries until somebody listens.
    with connecting(Reverse(), path), vhost.listen(path, queues=2, packed=True) as device:
        assert path.stat().st_mode & 0o007 == 0, "others may connect"
        assert device.request(b"abc", 3, queue=1) == b"cba"
        assert device.num_queues == 2


@pytest.mark.usefixtures("unix_build")
def test_a_backend_connects_to_an_event_loop(path: Path) -> None:
    async def main() -> None:
        async with await vhost.listen_async(path) as device:
            answers = await asyncio.gather(*(device.request(bytes([n]) * 2, 2) for n in range(50)))
            assert answers == [bytes([n]) * 2 for n in range(50)]

    with connecting(Reverse(), path):
        asyncio.run(main())


def listened(how: str, path: Path, **wishes: Any) -> None:
    if how == "listen":
        vhost.listen(path, **wishes).close()
        return

    async def main() -> None:
        (await vhost.listen_async(path, **wishes)).close()

    asyncio.run(main())


BOTH = pytest.mark.parametrize("how", ["listen", "listen_async"])


@BOTH
def test_nobody_connects(how: str, path: Path) -> None:
    with pytest.raises(TimeoutError, match=rf"waited 0\.05 s for a backend to connect to {path}"):
        listened(how, path, timeout=0.05)


@BOTH
@pytest.mark.parametrize("wrong", [{"queue_size": 100}, {"queues": 257}, {"ram_size": 0}])
def test_arguments_that_make_no_sense(how: str, path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        listened(how, path, **wrong)


@BOTH
def test_path_that_is_taken(how: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="is no socket"):
        listened(how, tmp_path / "file")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        with pytest.raises(TimeoutError):  # that of a process that died is replaced
            listened(how, tmp_path / "s", timeout=0.01)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(OSError, match="another process listens"):
            listened(how, tmp_path / "s")


@BOTH
def test_a_backend_that_refuses(how: str, path: Path) -> None:
    fake = Fake(script={SetMemTable: refuse})

    def connect() -> None:
        fake.sock.close()
        fake.sock = connected(path)
        fake.start()

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        with pytest.raises(RefusedError, match="SET_MEM_TABLE"):
            listened(how, path)
    finally:
        thread.join(20)
        fake.__exit__(None, None, None)


def connected(path: Path) -> socket.socket:
    for _ in range(2000):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            time.sleep(0.01)
        else:
            sock.settimeout(20)
            return sock
    raise AssertionError(f"nobody listens at {path}")


@pytest.mark.usefixtures("unix_build")
def test_a_backend_that_did_not_wait_is_passed_over(path: Path) -> None:
    with connecting(Reverse(), path):
        device = vhost.listen(path)
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as impatient:
                impatient.connect(str(path))
    with device, connecting(Reverse(), path):
        device.reconnect(resubmit=False)
        assert device.request(b"abc", 3) == b"cba"


@pytest.mark.usefixtures("unix_build")
def test_a_backend_comes_back(path: Path) -> None:
    """With requests in flight: each is answered once, by one or the other."""
    with connecting(Reverse(), path):
        device = vhost.listen(path, reconnect=20)
        queue = device.queue(0)
        tokens = {queue.submit(bytes([n, 1]), 2): bytes([1, n]) for n in range(20)}
    with device:
        tokens |= {queue.submit(bytes([n, 2]), 2): bytes([2, n]) for n in range(20)}
        with connecting(Reverse(), path):
            while queue.in_flight:
                done = queue.wait()
                assert done.data == tokens.pop(done.token)
            assert not tokens
            assert device.config(0, 2) == b"\0\0"


@pytest.mark.usefixtures("unix_build")
def test_a_backend_comes_back_when_it_is_asked_for(path: Path) -> None:
    with connecting(Reverse(), path):
        device = vhost.listen(path)
        assert device.request(b"abc", 3) == b"cba"
    with device:
        with pytest.raises(ConnectionError):
            device.request(b"abc", 3)
        with connecting(Reverse(), path):
            device.reconnect(resubmit=False)
            assert device.request(b"abc", 3) == b"cba"


@pytest.mark.usefixtures("unix_build")
def test_a_backend_that_stays_away(path: Path) -> None:
    with connecting(Reverse(), path):
        device = vhost.listen(path, reconnect=0.1)
    with device, pytest.raises(ConnectionRefusedError, match=f"nobody has connected to {path}"):
        device.request(b"abc", 3)


@pytest.mark.usefixtures("unix_build")
def test_closed_while_a_backend_is_away(path: Path) -> None:
    async def main() -> None:
        with connecting(Reverse(), path):
            device = await vhost.listen_async(path, reconnect=60, timeout=None)
        waiting = asyncio.create_task(device.request(b"abc", 3))
        again = asyncio.create_task(device.config(0, 1))
        await asyncio.sleep(0.05)
        device.close()
        async with asyncio.timeout(10):
            results = await asyncio.gather(waiting, again, return_exceptions=True)
        assert all(isinstance(result, OSError) for result in results), results

    asyncio.run(main())


def test_the_parameters_are_those_of_connect() -> None:
    for connect in CONNECTS:
        names = set(inspect.signature(connect).parameters) - {"target"}
        assert names == {*Wishes.__annotations__, "timeout", "quirks"}
