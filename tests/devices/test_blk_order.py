# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""IN_ORDER: offered where requests are done one after the other, so that a slow one holds up no others."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vhost
from vhost.backend import Stop
from vhost.devices.blk import Blk
from vhost.devices.blk_path import BlkPath, UringPath
from vhost.devices.disk import Disk, NullDisk
from vhost.devices.image import Image
from vhost.devices.memory_disk import MemoryDisk
from vhost.devices.net import Net
from vhost.devices.network import Discard
from vhost.devices.rng import Rng
from vhost.frontend import Blk as Driver
from vhost.frontend import Frontend
from vhost.protocol import VirtioFeature

from .blk_requests import need_uring

pytestmark = pytest.mark.usefixtures("unix_build")

IN_ORDER = int(VirtioFeature.IN_ORDER)
SIZE = 1 << 20
TIMEOUT = 20.0


class Line(Disk):
    """A first sector that somebody else has: who reads it waits, what is written goes out at once."""

    in_order = False

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(TIMEOUT)
        self.fd = theirs.detach()

    def path(self, core: Any, entries: int, *, later: bool) -> BlkPath:
        return UringPath(core, entries)

    def receive(self, size: int) -> bytes:
        """What was written."""
        data = b""
        while len(data) < size:
            more = self.ours.recv(size - len(data))
            assert more, f"only {len(data)} bytes"
            data += more
        return data

    def close(self) -> None:
        self.ours.close()
        if self.fd >= 0:
            socket.close(self.fd)
            self.fd = -1


@contextmanager
def served(device: vhost.Device, mode: str = "threads", features: str = "") -> Iterator[socket.socket]:
    """The front-end's end of a connection; the device is closed behind it."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        if mode == "threads":
            vhost.serve(device, sock=theirs, stop=stop, features=features)
        else:
            asyncio.run(vhost.serve_async(device, sock=theirs, stop=stop, features=features))

    with Stop() as stop:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield ours
        finally:
            ours.close()
            stop.set()
            thread.join(TIMEOUT)
            assert not thread.is_alive()
            device.close()


def offered(device: vhost.Device, features: str = "") -> bool:
    with served(device, features=features) as sock, vhost.connect(sock, queues=0) as front:
        return bool(front.offered_features & IN_ORDER)


@pytest.mark.parametrize(
    ("io", "direct", "in_order"),
    [("map", False, True), ("sync", False, True), ("uring", False, False), ("auto", True, False)],
)
def test_of_an_image_by_how_it_is_reached(tmp_path: Path, io: Any, direct: bool, in_order: bool) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    try:
        disk = Image(path, io=io, direct=direct)
    except OSError as error:
        pytest.skip(f"no O_DIRECT here: {error.strerror}")
    assert offered(Blk(disk)) == in_order


@pytest.mark.parametrize(
    "device",
    [
        lambda: Blk(NullDisk(SIZE)),
        lambda: Blk(MemoryDisk(SIZE)),
        lambda: Net(Discard()),
        Rng,
        lambda: Rng(max_bytes=5),
    ],
    ids=["null", "memory", "net", "rng", "rng with a quota"],
)
def test_of_devices_that_do_one_after_the_other(device: Any) -> None:
    assert offered(device())


def test_a_user_may_ask_for_it_and_against_it() -> None:
    assert offered(Blk(Line()), "+in-order")
    assert not offered(Blk(NullDisk(SIZE)), "-in-order")


def connected(sock: socket.socket, **options: Any) -> Frontend:
    return vhost.connect(sock, timeout=TIMEOUT, ram_size=4 << 20, **options)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("mode", ["threads", "asyncio"])
def test_a_slow_request_holds_up_no_others(mode: str, packed: bool) -> None:
    """With a driver that takes IN_ORDER wherever it is offered."""
    need_uring()
    line = Line()
    with served(Blk(line), mode) as sock:
        with connected(sock.dup(), queues=0) as probe:
            takes = bool(probe.offered_features & IN_ORDER)
        assert not takes
    line = Line()
    with (
        served(Blk(line), mode) as sock,
        connected(sock, packed=packed, in_order=takes) as front,
        line.ours,  # what waits is done then, whatever has gone wrong
    ):
        driver = Driver(front)
        slow = driver.submit_read(0, 512)
        for turn in range(100):
            driver.write(0, bytes([turn]) * 512)  # and waits
            assert line.receive(512) == bytes([turn]) * 512
        line.ours.sendall(b"x" * 512)
        assert driver.wait(slow) == b"x" * 512


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("mode", ["threads", "asyncio"])
def test_who_asks_for_order_gets_it(mode: str, packed: bool) -> None:
    need_uring()
    line = Line()
    with (
        served(Blk(line), mode, "+in-order") as sock,
        connected(sock, packed=packed, in_order=True) as front,
        line.ours,
    ):
        driver = Driver(front)
        slow = driver.submit_read(0, 512)
        quick = [driver.submit_write(0, bytes([turn]) * 512) for turn in range(5)]
        front.queue(0).publish()
        assert sorted(line.receive(5 * 512)) == sorted(bytes(range(5)) * 512)  # all are written
        line.ours.sendall(b"x" * 512)
        assert [token for token, _ in driver.drain()] == [slow, *quick]
