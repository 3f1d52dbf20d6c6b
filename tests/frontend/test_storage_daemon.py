# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The frontend on the block device of qemu-storage-daemon, a backend of other authors."""

import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vhost
from vhost.errors import RefusedError
from vhost.frontend import Blk
from vhost.protocol import ProtocolFeature, VirtioFeature
from vhost.virtio.blk import BlkFeature

PROGRAM = shutil.which("qemu-storage-daemon")
SIZE = 64 << 20

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="qemu-storage-daemon is not installed"),
    pytest.mark.usefixtures("no_leaks"),
]


class Export:
    """A running export: `path` to connect to, `image` behind it."""

    def __init__(self, path: Path, image: Path, process: "subprocess.Popen[bytes]") -> None:
        self.path, self.image, self.process = path, image, process


@pytest.fixture
def export(no_leaks: None, tmp_path: Path) -> Iterator[Callable[..., Export]]:
    """A function that starts a writable export."""
    running = []

    @contextmanager
    def start(options: str) -> Iterator[Export]:
        image, path = tmp_path / "disk.img", tmp_path / "blk.sock"
        with image.open("wb") as file:
            file.truncate(SIZE)
        # It takes over a socket that listens already, so there is nothing to wait for.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            number = listener.fileno()
            process = subprocess.Popen(
                [
                    str(PROGRAM),
                    "--blockdev",
                    f"driver=file,node-name=disk,filename={image},discard=unmap",
                    "--export",
                    f"vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=fd,addr.str={number}{options}",
                ],
                pass_fds=[number],
            )
        try:
            yield Export(path, image, process)
        finally:
            process.kill()
            process.wait()

    def begin(options: str = "") -> Export:
        context = start(options)
        running.append(context)
        return context.__enter__()

    yield begin
    for context in running:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("depth", [1, 64])
@pytest.mark.parametrize(("event_idx", "indirect"), [(True, True), (False, False)], ids=["all", "plain"])
def test_64_mib(export: Callable[..., Export], depth: int, event_idx: bool, indirect: bool) -> None:
    block = 64 << 10
    data = random.Random(depth).randbytes(SIZE)
    places = list(range(0, SIZE, block))
    random.Random(depth).shuffle(places)
    disk = export()
    with vhost.connect(disk.path, event_idx=event_idx, indirect=indirect) as frontend:
        assert bool(frontend.features & VirtioFeature.RING_EVENT_IDX) == event_idx
        blk = Blk(frontend)
        assert blk.capacity == SIZE
        for place in places:
            if blk.in_flight == depth:
                next(blk.drain())
            blk.submit_write(place, data[place : place + block])
        assert len(list(blk.drain())) == blk.in_flight + depth == depth
        blk.flush()
        assert disk.image.read_bytes() == data
        flying: dict[int, int] = {}
        right = 0
        for place in places:
            if len(flying) == depth:
                token, got = next(blk.drain())
                right += got == data[(at := flying.pop(token)) : at + block]
            flying[blk.submit_read(place, block)] = place
        for token, got in blk.drain():
            right += got == data[(at := flying.pop(token)) : at + block]
        assert right == len(places)


def test_all_requests(export: Callable[..., Export]) -> None:
    disk = export()
    with vhost.connect(disk.path) as frontend:
        blk = Blk(frontend)
        assert blk.features & (BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES | BlkFeature.FLUSH)
        assert blk.serial() == "vhost_user_blk"
        blk.write(0, b"\xaa" * (1 << 20))
        blk.write_zeroes(4096, 8192)
        blk.discard(65536, 65536)
        blk.flush()
        assert blk.read(0, 16384) == b"\xaa" * 4096 + bytes(8192) + b"\xaa" * 4096
        assert blk.read(65536, 65536) == bytes(65536)
        with pytest.raises(OSError, match="IOERR"):
            blk.read(SIZE, 512)
        with pytest.raises(RefusedError, match="GET_CONFIG"):
            frontend.config(0, 256)  # more than it has


def test_two_queues_stop_and_go_on(export: Callable[..., Export]) -> None:
    disk = export(",num-queues=2")
    with vhost.connect(disk.path, queues=2, slots=True) as frontend:
        assert frontend.num_queues == 2
        assert frontend.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS
        first, second = Blk(frontend), Blk(frontend, queue=1)
        first.write(0, b"1" * 512)
        second.write(512, b"2" * 512)
        assert frontend.stop(0) == 1
        assert second.read(0, 1024) == b"1" * 512 + b"2" * 512
        frontend.start(0)
        assert first.read(0, 1024) == b"1" * 512 + b"2" * 512
        assert frontend.stop(0) == 2


def test_one_frontend_after_the_other(export: Callable[..., Export]) -> None:
    disk = export()
    for n in range(3):
        with vhost.connect(disk.path) as frontend:
            Blk(frontend).write(0, bytes([n]) * 512)
    assert disk.image.read_bytes()[:512] == b"\2" * 512


def test_killed(export: Callable[..., Export]) -> None:
    disk = export()
    with vhost.connect(disk.path) as frontend:
        blk = Blk(frontend)
        blk.flush()
        disk.process.kill()
        with pytest.raises(ConnectionResetError, match="closed the connection"):
            blk.read(0, 512)
