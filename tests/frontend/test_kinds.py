# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Every kind of ring through a socket, our frontend against our backend, and what happens while it runs."""

import os
import random
import socket
import threading
from typing import Any

import pytest

import vhost
from tests.frontend.served import Reverse, served
from vhost.errors import RefusedError
from vhost.frontend import FrontendQueue, LinearIommu
from vhost.frontend.ram import GUEST_BASE
from vhost.protocol import PackedBase, Quirks, SetInflightFd
from vhost.virtqueue import Chain, Queue

PAGE = 4096

KINDS: dict[str, dict[str, Any]] = {
    "split": {},
    "in-order": {"in_order": True},
    "big-endian": {"big_endian": True},
    "packed": {"packed": True, "queue_size": 7},
    "packed-3": {"packed": True, "queue_size": 3},
    "packed-in-order": {"packed": True, "in_order": True, "queue_size": 100},
}
BOTH = {name: KINDS[name] for name in ("split", "packed")}


def many(queue: FrontendQueue, rng: random.Random, count: int) -> None:
    """As many requests as fit at once, of random shapes, and every answer compared."""
    wanted: dict[int, bytes] = {}
    sent = 0
    while sent < count or wanted:
        while sent < count:
            data = rng.randbytes(rng.randint(1, 300))
            room = rng.choice([0, 1, len(data), len(data) + 5, 1000])
            cut = rng.randint(0, len(data))
            try:
                token = queue.submit([data[:cut], data[cut:]], [room], publish=rng.random() < 0.5)
            except BlockingIOError:
                break
            except ValueError:  # three pieces are too many for this ring
                token = queue.submit(data)
                room = 0
            wanted[token] = data[::-1][:room]
            sent += 1
        queue.publish()
        done = queue.wait()
        assert done.data == wanted.pop(done.token)
        for done in queue.completed():
            assert done.data == wanted.pop(done.token)


@pytest.mark.parametrize("polled", [False, True], ids=["", "polled"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_in_flight(
    backend: socket.socket, kind: str, indirect: bool, event_idx: bool, polled: bool
) -> None:
    options = {"queue_size": 32} | KINDS[kind]
    fds = {"kick": False, "call": False} if polled else {}
    with vhost.connect(backend, event_idx=event_idx, indirect=indirect, **fds, **options) as device:
        many(device.queue(0), random.Random(f"{kind}{indirect}{event_idx}"), 100 if polled else 250)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_started_anywhere(backend: socket.socket, kind: str) -> None:
    """A ring that is stopped with requests in flight has returned what it took, and goes on with the next."""
    rng = random.Random(kind)
    options = {"queue_size": 16} | KINDS[kind]
    with vhost.connect(backend, **options) as device:
        queue = device.queue(0)
        wanted: dict[int, bytes] = {}
        bases = set()
        for _ in range(60):
            for _ in range(rng.randint(1, 20)):
                data = rng.randbytes(rng.randint(1, 20))
                try:
                    wanted[queue.submit(data, 20)] = data[::-1]
                except BlockingIOError:
                    break
            base = device.stop(0)
            bases.add(base)
            for done in queue.completed():
                assert done.data == wanted.pop(done.token)
            assert queue.in_flight == len(wanted)
            if options.get("packed"):
                place = PackedBase.of(base, Quirks())
                # Nothing is with the device, so it goes on where it returns.
                assert (place.avail, place.avail_wrap) == (place.used, place.used_wrap)
            device.start(0)
        while wanted:
            done = queue.wait()
            assert done.data == wanted.pop(done.token)
        assert len(bases) > 1


@pytest.mark.parametrize("kind", BOTH)
def test_nothing_is_written_once_a_ring_has_stopped(backend: socket.socket, kind: str) -> None:
    with vhost.connect(backend, ram_size=1 << 20, **BOTH[kind]) as device:
        queue = device.queue(0)
        device.log_start()
        for n in range(30):
            try:
                for _ in range(5):
                    queue.submit(bytes([n]) * 100, 100)
            except BlockingIOError:
                pass
            device.stop(0)
            memory = os.pread(device.ram.fileno(), device.ram.size, 0)
            device.dirty()
            # The backend answers, so it has had its turn.
            assert device.exchange(vhost.protocol.GetQueueNum())
            assert os.pread(device.ram.fileno(), device.ram.size, 0) == memory
            assert device.dirty() == []
            device.start(0)
            list(queue.completed())


@pytest.mark.parametrize("kind", ["split", "big-endian", "packed", "packed-in-order"])
def test_exactly_what_was_written_is_dirty(backend: socket.socket, kind: str) -> None:
    """Switched on and off under way: the pages of answers, as far as they go, and those of the ring."""
    rng = random.Random(kind)
    with vhost.connect(backend, ram_size=4 << 20, indirect=False, **KINDS[kind]) as device:
        session = device._session
        ring = session.ring(0)
        queue = device.queue(0)
        size = device.ram.size

        def exchanged(log: bool) -> set[int]:
            """A request; pages that differ and that no driver writes."""
            length = rng.choice([0, 1, 5000, 9000])
            data = rng.randbytes(max(1, length))
            token = queue.submit(data, [length] if length else [], publish=False)
            (request,) = ring._requests.values()
            first = request.buffer.gpa + request.writable_from
            before = os.pread(device.ram.fileno(), size, 0)
            queue.publish()
            done = queue.wait(token)
            assert done.data == data[::-1][:length]
            assert len(before) == size
            return {at // PAGE * PAGE for at in range(first, first + length)}

        for _ in range(3):
            exchanged(False)
        for _ in range(4):
            device.log_start()
            device.dirty()
            parts = {part.gpa // PAGE * PAGE for part in ring.vring._parts[:3]}
            for _ in range(10):
                pages = exchanged(True)
                dirty = set(device.dirty())
                assert pages <= dirty
                assert dirty - pages <= parts, "a page that nobody wrote"
                assert dirty & parts, "not what was written to the ring"
            device.log_stop()
            device.dirty()
            exchanged(False)
            assert device.dirty() == []


@pytest.mark.parametrize("grain", [PAGE, 1 << 21])
@pytest.mark.parametrize("kind", KINDS)
def test_translated(backend: socket.socket, kind: str, grain: int) -> None:
    """The backend asks for what it does not know, and goes on when it is told."""
    iommu = LinearIommu(grain=grain)
    options = {"queue_size": 16} | KINDS[kind]
    with vhost.connect(backend, iommu=iommu, ram_size=1 << 20, **options) as device:
        many(device.queue(0), random.Random(kind), 100)
        assert iommu.misses
        asked = iommu.misses
        many(device.queue(0), random.Random(kind), 50)
        assert iommu.misses <= asked + -(-(1 << 20) // grain)


@pytest.mark.parametrize("kind", KINDS)
def test_translations_taken_back_while_in_use(backend: socket.socket, kind: str) -> None:
    """Buffers' and the ring's own: each is asked for again, and no request is lost."""
    rng = random.Random(kind)
    iommu = LinearIommu(grain=PAGE)
    options = {"queue_size": 16} | KINDS[kind]
    with vhost.connect(backend, iommu=iommu, ram_size=1 << 18, **options) as device:
        queue = device.queue(0)
        start = iommu.iova(GUEST_BASE, 1)
        wanted: dict[int, bytes] = {}
        for turn in range(60):
            for _ in range(rng.randint(1, 8)):
                data = rng.randbytes(rng.randint(1, 2000))
                try:
                    wanted[queue.submit(data, 2000)] = data[::-1]
                except (BlockingIOError, MemoryError):
                    break
            page = rng.randrange(device.ram.size // PAGE)
            whole = turn % 4 == 0
            device.iotlb_invalidate(start + (0 if whole else page * PAGE), device.ram.size if whole else PAGE)
            if wanted:
                done = queue.wait()
                assert done.data == wanted.pop(done.token)
        while wanted:
            done = queue.wait()
            assert done.data == wanted.pop(done.token)
        assert iommu.misses > 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_translation_of_the_ring_goes_with_that_of_another_page(backend: socket.socket, kind: str) -> None:
    """One translation covers all memory; the ring's pages, which stay, are still logged."""
    iommu = LinearIommu(grain=1 << 21)
    with vhost.connect(backend, iommu=iommu, ram_size=1 << 20, timeout=10, **KINDS[kind]) as device:
        last = iommu.iova(GUEST_BASE, 1) + device.ram.size - PAGE
        for _ in range(3):
            device.log_start()
            device.iotlb_invalidate(last, PAGE)
            many(device.queue(0), random.Random(kind), 20)
            ring = device._session.ring(0)
            assert {part.gpa // PAGE * PAGE for part in ring.vring._parts[:3]} & set(device.dirty())
            device.iotlb_invalidate(last, PAGE)
            device.log_stop()
            many(device.queue(0), random.Random(kind), 20)


class Many(Reverse):
    """So many queues that one answer could set off many questions."""

    num_queues = 16


@pytest.mark.usefixtures("no_leaks", "unix_build")
def test_as_much_is_asked_for_each_ring_however_many_there_are() -> None:
    """After all translations were taken back from all rings, which then have work at once."""
    each = {}
    for queues in (1, 2, 4, 8, 16):
        iommu = LinearIommu(grain=PAGE)
        with (
            served(Many(), "+iommu,+indirect") as sock,
            vhost.connect(sock, queues=queues, iommu=iommu, ram_size=4 << 20) as device,
        ):
            rings = [device.queue(index) for index in range(queues)]
            for ring in rings:
                ring.wait(ring.submit(b"abc", 3))
            before = iommu.misses
            for _ in range(5):
                device.iotlb_invalidate(0, 1 << 63)
                tokens = [ring.submit(b"abc", 3) for ring in rings]
                for ring, token in zip(rings, tokens, strict=True):
                    assert ring.wait(token).data == b"cba"
            each[queues] = (iommu.misses - before) / queues
    # Some pages are of two rings.
    assert max(each.values()) <= 1.5 * each[1], each


class Keeper(Reverse):
    """Returns chains only when the ring stops."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Chain] = []
        self.has = threading.Semaphore(0)

    def handle(self, queue: Queue) -> float | None:
        for chain in queue:
            self.kept.append(chain)
            self.has.release()
        return None

    def stop(self, index: int) -> None:
        for chain in self.kept:
            self.process(chain)
            chain.push()
        self.kept.clear()


@pytest.mark.usefixtures("no_leaks", "unix_build")
@pytest.mark.parametrize("kind", KINDS)
def test_chains_with_the_device_are_returned_before_a_translation_goes(kind: str) -> None:
    keeper, iommu = Keeper(), LinearIommu(grain=1 << 21)
    with (
        served(keeper, "+iommu,+indirect") as sock,
        vhost.connect(sock, iommu=iommu, ram_size=1 << 18, timeout=10, **KINDS[kind]) as device,
    ):
        queue = device.queue(0)
        last = iommu.iova(GUEST_BASE, 1) + device.ram.size - PAGE
        for _ in range(3):
            tokens = [queue.submit(b"abc", 3) for _ in range(2)]
            for _ in tokens:
                assert keeper.has.acquire(timeout=10)
            assert not list(queue.completed())
            device.iotlb_invalidate(last, PAGE)
            assert [queue.wait(token).data for token in tokens] == [b"cba", b"cba"]


@pytest.mark.parametrize("kind", ["split", "packed", "packed-in-order"])
@pytest.mark.parametrize("padding", [0, 48, 4096])
@pytest.mark.parametrize("offset", [0, 64, 8192])
def test_region_of_a_foreign_backend(backend: socket.socket, kind: str, padding: int, offset: int) -> None:
    """Rings as far apart as whoever made the region wanted them; what is in between stays as it is."""
    size, packed = KINDS[kind].get("queue_size", 128), "packed" in kind
    need = 32 + 32 * size if packed else 16 + 16 * size
    each = need + padding
    fd = os.memfd_create("foreign")
    total = offset + 2 * each
    os.ftruncate(fd, total)
    for at in [*range(offset), *(offset + n * each + k for n in (0, 1) for k in range(need, each))]:
        os.pwrite(fd, b"\xa5", at)
    with vhost.connect(backend, queues=2, inflight=True, **KINDS[kind]) as device:
        for index in (0, 1):
            device.stop(index)
        device.exchange(SetInflightFd(2 * each, offset, 2, size), (fd,))
        # The first part is laid out while the second one is in use.
        for index in (1, 0):
            device.start(index)
            many(device.queue(index), random.Random(kind), 40)
            device.stop(index)
            part = os.pread(fd, each, offset + index * each)
            assert part[8:10] == b"\1\0", "it is not in use"
            assert part[need:] == b"\xa5" * (each - need)
            head, step = (32, 32) if packed else (16, 16)
            assert not any(part[head:need:step]), "something is in flight"
        assert os.pread(fd, offset, 0) == b"\xa5" * offset
    os.close(fd)


def test_region_that_is_too_short(backend: socket.socket, device: Reverse) -> None:
    fd = os.memfd_create("short")
    os.ftruncate(fd, 4096)
    with vhost.connect(backend, inflight=True) as frontend:
        frontend.stop(0)
        for message in (SetInflightFd(8192, 0, 1, 128), SetInflightFd(4096, 64, 1, 128)):
            with pytest.raises(RefusedError, match="SET_INFLIGHT_FD"):
                frontend.exchange(message, (fd,))
        with pytest.raises(RefusedError):
            frontend.exchange(SetInflightFd(1024, 0, 1, 128), (fd,))
            frontend.start(0)
    os.close(fd)
