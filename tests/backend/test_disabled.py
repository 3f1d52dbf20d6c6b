# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Rings that are disabled: what is in flight is waited for, and while none is enabled none is touched."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.backend.peer import FEATURES, RAM_SIZE, DriverRing, Peer, footprint, readable
from tests.backend.serving import Serving
from tests.devices.blk_requests import header, need_uring
from vhost import Device
from vhost.devices.blk import Blk
from vhost.devices.image import Image
from vhost.devices.net import Net
from vhost.devices.network import Discard
from vhost.protocol import (
    GetQueueNum,
    Message,
    ResetOwner,
    SetFeatures,
    SetMemTable,
    SetVringCall,
    SetVringEnable,
    VirtioFeature,
)

SECTOR = 512
FRAME = bytes(12) + b"\xff" * 60

pytestmark = pytest.mark.usefixtures("unix_build")
modes = pytest.mark.parametrize("mode", ["threads", "asyncio"])


@contextmanager
def serving(device: Device, mode: str, work: Path) -> Iterator[Serving]:
    before = footprint()
    with Serving(device, mode, work / "socket") as server:
        yield server
    assert footprint() == before


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[tuple[Blk, int]]:
    """A disk of two queues whose reads wait until somebody writes to a pipe; the end to write to."""
    need_uring()
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    image = Image(path, io="uring")
    read, write = os.pipe()
    os.dup2(read, image.fd)
    os.close(read)
    device = Blk(image, num_queues=2)
    yield device, write
    device.close()
    os.close(write)


@modes
@pytest.mark.parametrize("message", [SetVringEnable(0, 0), ResetOwner()], ids=["DISABLE", "RESET_OWNER"])
@pytest.mark.parametrize("others", [0, 1], ids=["the last", "one of two"])
def test_what_is_in_flight_is_waited_for(
    slow_disk: tuple[Blk, int], mode: str, tmp_path: Path, message: Message, others: int
) -> None:
    device, pipe = slow_disk
    with serving(device, mode, tmp_path) as server, server.connect() as peer:
        ring = peer.ready()
        for index in range(1, 1 + others):
            peer.start(peer.ring(index))
        ring.add(header(0), SECTOR + 1)
        ring.kick_it()
        while int.from_bytes(ring.memory(0x2000, 4)[:2], "little") == 1 or not taken(ring):
            peer.value(GetQueueNum())
        peer.tell(message, need_reply=True)
        assert not readable(peer.sock.fileno(), 0.2)
        os.write(pipe, b"z" * SECTOR)
        assert peer.reply().code == 0
        memory = bytes(peer.view)
        assert ring.answer() == b"z" * SECTOR + b"\0"
        os.write(pipe, b"y" * SECTOR)
        ring.add(header(0), SECTOR + 1)
        ring.kick_it()
        peer.value(GetQueueNum())
        assert changes(memory, bytes(peer.view), ring) == set()
        peer.do(SetVringEnable(0, 1))
        assert ring.answer() == b"y" * SECTOR + b"\0"


def taken(ring: DriverRing) -> bool:
    # With EVENT_IDX the device says how far it has read; it does when it sleeps, as it does when all flies.
    return bytes(ring.memory(0x2000 + 4 + 8 * ring.size, 2)) == b"\1\0"


def changes(before: bytes, after: bytes, ring: DriverRing) -> set[int]:
    """Pages that have changed and that are not the driver's own: its descriptors, avail ring and requests."""
    own = {0, 1, ring.data >> 12}
    pages = range(RAM_SIZE >> 12)
    return {
        page for page in pages if before[page << 12 : page + 1 << 12] != after[page << 12 : page + 1 << 12]
    } - own


@contextmanager
def card(mode: str, work: Path) -> Iterator[tuple[Serving, Peer, DriverRing, DriverRing]]:
    """A network device of one pair, whose rings are started and enabled."""
    device = Net(Discard(generate=60))
    with serving(device, mode, work) as server:
        with server.connect() as peer:
            peer.negotiate(FEATURES)
            peer.share()
            receives, sends = peer.ring(0), peer.ring(1)
            for ring in (receives, sends):
                peer.start(ring)
            yield server, peer, receives, sends
        assert not server.lines.having("", "ERROR")
    device.close()


def test_what_was_used_before_is_called_for_by_a_new_descriptor(
    slow_disk: tuple[Blk, int], tmp_path: Path
) -> None:
    device, pipe = slow_disk
    with serving(device, "threads", tmp_path) as server, server.connect() as peer:
        ring = peer.ready()
        peer.do(SetVringCall(0, no_fd=True))
        ring.add(header(0), SECTOR + 1)
        os.write(pipe, b"z" * SECTOR)
        ring.kick_it()
        while not taken(ring):
            peer.value(GetQueueNum())
        peer.do(SetVringEnable(0, 0))
        while readable(ring.call, 0):
            os.eventfd_read(ring.call)
        peer.do(SetVringCall(0), [ring.call])
        peer.do(SetVringEnable(0, 1))
        assert readable(ring.call)
        assert ring.answer() == b"z" * SECTOR + b"\0"


def send(ring: DriverRing) -> None:
    head = ring.driver.add([(ring.peer.gpa + ring.data, len(FRAME))], [])
    assert head >= 0
    ring.peer.view[ring.data : ring.data + len(FRAME)] = FRAME
    ring.driver.publish()
    ring.kick_it()


def sent(ring: DriverRing) -> int:
    return len(ring.driver.poll())


@modes
def test_frames_are_discarded_while_another_ring_is_enabled(mode: str, tmp_path: Path) -> None:
    with card(mode, tmp_path) as (_, peer, _, sends):
        peer.do(SetVringEnable(1, 0))
        send(sends)
        while not sent(sends):
            pass
        peer.do(SetVringEnable(0, 0))
        send(sends)
        for _ in range(20):
            peer.value(GetQueueNum())
        assert not sent(sends)
        peer.do(SetVringEnable(0, 1))  # nobody kicks, nobody has to
        while not sent(sends):
            pass


def nothing(peer: Peer) -> None:
    pass


def features(peer: Peer) -> None:
    """The next driver negotiates before it makes rings."""
    peer.do(SetFeatures(FEATURES & ~VirtioFeature.RING_EVENT_IDX))
    peer.do(SetFeatures(FEATURES))


def table(peer: Peer) -> None:
    peer.do(SetMemTable((peer.region(),)), [peer.ram])


@modes
@pytest.mark.parametrize("then", [nothing, features, table])
def test_memory_is_the_guests_while_no_ring_is_enabled(
    mode: str, tmp_path: Path, then: Callable[[Peer], None]
) -> None:
    """As user-mode Linux takes its driver away, and puts something else where its rings were."""
    with card(mode, tmp_path) as (_, peer, receives, sends):
        for _ in range(5):
            for n in range(4):
                send(sends)
                receives.add(b"", 1600, page=n)
            receives.kick_it()
            got = 0
            while got < 4:
                got += sent(sends)
            for ring in (receives, sends):
                peer.do(SetVringEnable(ring.index, 0))
            noise = os.urandom(RAM_SIZE)
            peer.view[:] = noise
            then(peer)
            for ring in (receives, sends):
                ring.kick_it()
            for _ in range(20):
                peer.value(GetQueueNum())
            assert bytes(peer.view) == noise
            peer.view[:] = bytes(RAM_SIZE)
            receives, sends = peer.ring(0), peer.ring(1)
            # Ring by ring, as libkrun and crosvm do: the second is started still when the first is enabled.
            for ring in (receives, sends):
                peer.start(ring)


@modes
def test_enabling_and_disabling_under_traffic(mode: str, tmp_path: Path) -> None:
    with card(mode, tmp_path) as (_, peer, _, sends):
        stop = threading.Event()
        seen = 0

        def drive() -> None:
            nonlocal seen
            while not stop.is_set():
                if sends.driver.free:
                    send(sends)
                seen += sent(sends)

        thread = threading.Thread(target=drive)
        thread.start()
        for n in range(200):
            peer.do(SetVringEnable(n % 2, n // 2 % 2))
        for index in range(2):
            peer.do(SetVringEnable(index, 1))
        stop.set()
        thread.join()
        while sends.driver.free < sends.size:
            seen += sent(sends)
        assert seen > 0
        send(sends)
        while not sent(sends):
            pass
