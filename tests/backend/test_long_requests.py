# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Requests that take long: the ring can be stopped in the middle of one, and others have their turn.

They would take minutes here, so that at once means seconds: the machine may be busy.
"""

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import vhost
from tests.backend.peer import DriverRing, readable
from tests.backend.serving import Serving
from tests.backend.slow_disk import MIB, PACE, SIZE, SlowDisk
from vhost.devices.blk import Blk
from vhost.frontend import Completion, Frontend, LinearIommu
from vhost.protocol import SetVringCall, SetVringEnable
from vhost.virtio.blk import BlkRequest as Request
from vhost.virtqueue import Chain

pytestmark = pytest.mark.usefixtures("unix_build")

KINDS: dict[str, dict[str, Any]] = {
    "split": {},
    "event-idx": {"event_idx": True},
    "direct": {"indirect": False},
    "in-order": {"in_order": True},
    "big-endian": {"big_endian": True},
    "packed": {"packed": True, "queue_size": 40},
    "packed-in-order": {"packed": True, "in_order": True},
    "inflight": {"inflight": True},
    "packed-inflight": {"packed": True, "inflight": True, "queue_size": 40},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
ONE_WORKER: dict[str, dict[str, Any]] = {"threads": {"polling": vhost.Polling(workers=1)}, "asyncio": {}}
#: Seconds.
AT_ONCE = 5.0
OK = b"\0"


class Slow:
    """A slow disk with two rings that one thread serves, or an event loop."""

    def __init__(self, mode: str, path: Path) -> None:
        self.disk = SlowDisk()
        self.device = Blk(self.disk, num_queues=2)
        self.serving = Serving(self.device, mode, path, features="+iommu,+indirect", **ONE_WORKER[mode])

    @contextmanager
    def connect(self, **options: Any) -> Iterator[Frontend]:
        options = {"queues": 2, "event_idx": False, "ram_size": 4 << 20, "timeout": 60.0} | options
        with vhost.connect(self.serving.path, **options) as frontend:
            yield frontend


@pytest.fixture(params=["threads", "asyncio"])
def slow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Slow]:
    made = Slow(request.param, tmp_path / "socket")
    with made.serving:
        yield made
    made.device.close()


def request(frontend: Frontend, kind: Request, sector: int = 0, *ranges: tuple[int, int]) -> list[bytes]:
    """The readable parts of a request: its header, and the ranges to clear, in bytes."""
    order = ">" if frontend.big_endian else "<"
    segments = [struct.pack(order + "QII", offset >> 9, n >> 9, 0) for offset, n in ranges]
    return [struct.pack(order + "IIQ", kind, 0, sector), *([b"".join(segments)] if segments else [])]


def everything(frontend: Frontend) -> list[bytes]:
    return request(frontend, Request.WRITE_ZEROES, 0, (0, SIZE))


def took(start: float) -> float:
    return time.monotonic() - start


def check_whole(cleared: list[tuple[int, int]], start: int = 0, end: int = SIZE) -> None:
    """One piece after the other, from the start to the end."""
    at = start
    for offset, length in cleared:
        assert offset == at
        at += length
    assert at == end


@every_kind
def test_stopped_and_served_again(slow: Slow, kind: str) -> None:
    with slow.connect(**KINDS[kind]) as frontend:
        queue = frontend.queue(0)
        queue.submit(everything(frontend), 1)
        for _ in range(3):
            slow.disk.wait(4)
            start = time.monotonic()
            frontend.stop(0)
            assert took(start) < AT_ONCE
            pieces = slow.disk.start_over(PACE)
            assert pieces[0][0] == 0
            assert max(length for _, length in pieces) * PACE / MIB < 0.05
            assert (list(queue.completed()), queue.in_flight) == ([], 1)
            assert slow.disk.cleared == []
            frontend.start(0)
        slow.disk.wait(2)
        frontend.stop(0)
        slow.disk.start_over(0)
        frontend.start(0)
        assert queue.wait().buffer == OK
        check_whole(slow.disk.cleared)
        assert frontend.request(request(frontend, Request.FLUSH), 1) == OK


@every_kind
def test_those_before_it_are_done_and_those_behind_it_wait(slow: Slow, kind: str) -> None:
    with slow.connect(**KINDS[kind]) as frontend:
        queue = frontend.queue(0)
        before = [queue.submit(request(frontend, Request.GET_ID), [20, 1], publish=False) for _ in range(3)]
        long = queue.submit(everything(frontend), 1, publish=False)
        behind = [queue.submit(request(frontend, Request.IN, n), [512, 1], publish=False) for n in range(4)]
        short = queue.submit(request(frontend, Request.DISCARD, 0, (0, 512), (512, 512)), 1, publish=False)
        queue.publish()
        assert [queue.wait().token for _ in before] == before
        slow.disk.wait(3)
        assert queue.completed() == []
        frontend.stop(0)
        slow.disk.start_over(0)
        frontend.start(0)
        assert [queue.wait().token for _ in range(6)] == [long, *behind, short]
        check_whole(slow.disk.cleared[:-2])
        assert slow.disk.cleared[-2:] == [(0, 512), (512, 512)]


def test_other_rings_of_the_worker_have_their_turn(slow: Slow) -> None:
    with slow.connect() as frontend:
        queue = frontend.queue(0)
        queue.submit(everything(frontend), 1)
        slow.disk.wait(1)
        for n in range(50):
            assert frontend.request(request(frontend, Request.IN, n), [512, 1], queue=1)[-1:] == OK
        # It went on meanwhile, and both may be long.
        slow.disk.wait(3)
        other = frontend.queue(1)
        other.submit(request(frontend, Request.DISCARD, 0, (0, SIZE >> 1), (SIZE >> 1, SIZE >> 1)), 1)
        slow.disk.wait(6)
        assert (queue.completed(), other.completed()) == ([], [])
        slow.disk.start_over(0)
        assert [queue.wait().buffer, other.wait().buffer] == [OK, OK]


def test_reset(slow: Slow) -> None:
    with slow.connect() as frontend:
        frontend.queue(0).submit(everything(frontend), 1)
        slow.disk.wait(3)
        start = time.monotonic()
        frontend.reset()
        assert took(start) < AT_ONCE
        slow.disk.start_over(0)
        frontend.start(0)
        assert frontend.request(request(frontend, Request.FLUSH), 1) == OK


def test_the_front_end_goes(slow: Slow) -> None:
    with slow.connect() as frontend:
        frontend.queue(0).submit(everything(frontend), 1)
        frontend.queue(1).submit(everything(frontend), 1)
        slow.disk.wait(5)
        start = time.monotonic()
    with slow.connect() as frontend:
        slow.disk.start_over(0)
        assert frontend.request(everything(frontend), 1, queue=1) == OK
        assert took(start) < AT_ONCE
    assert slow.serving.lines.having("has not returned|failed", "ERROR") == []


def test_the_server_ends(slow: Slow) -> None:
    with slow.connect() as frontend:
        frontend.queue(0).submit(everything(frontend), 1)
        slow.disk.wait(3)
        start = time.monotonic()
        slow.serving.stop.set()
        slow.serving.lines.wait("ring 0 stopped")
        assert took(start) < AT_ONCE


def ask_for_all(ring: DriverRing) -> None:
    header = struct.pack("<IIQ", Request.WRITE_ZEROES, 0, 0)
    ring.add(header + struct.pack("<QII", 0, SIZE >> 9, 0), 1)
    ring.kick_it()


def test_a_disabled_ring_lets_go_of_it(slow: Slow) -> None:
    with slow.serving.connect() as peer:
        ring = peer.ready()
        ask_for_all(ring)
        slow.disk.wait(3)
        start = time.monotonic()
        peer.do(SetVringEnable(0, 0))
        assert took(start) < AT_ONCE
        slow.disk.start_over(0)
        assert peer.base() == 0
        assert slow.disk.cleared == []
        peer.start(ring)
        assert ring.answer() == OK
        check_whole(slow.disk.cleared)


def test_what_does_not_concern_it_does_not_send_it_back(slow: Slow) -> None:
    with slow.serving.connect() as peer:
        ring = peer.ready()
        ask_for_all(ring)
        for _ in range(5):
            slow.disk.wait(2)
            call = os.eventfd(0, os.EFD_NONBLOCK)
            os.close(ring.call)
            ring.call = call
            peer.do(SetVringCall(0), [call])
            peer.do(SetVringEnable(0, 1))
        slow.disk.pace = 0
        assert readable(ring.call)
        assert ring.answer() == OK
        check_whole(slow.disk.cleared)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_translations_that_go(slow: Slow, packed: bool) -> None:
    """Those of its own buffers send it back, others do not."""
    page = 4096
    with slow.connect(iommu=LinearIommu(grain=page), packed=packed) as frontend:
        queue, session = frontend.queue(0), frontend._session
        queue.submit(everything(frontend), 1)
        (chain,) = (request.chain for request in session.ring(0)._requests.values())
        pages = {address & -page for address, _ in chain}

        def starts() -> list[int]:
            return [place for place, (offset, _) in enumerate(slow.disk.cleared) if not offset]

        def invalidate(address: int) -> None:
            frontend.iotlb_invalidate(address, page)

        def goes_on(enough: Callable[[], bool]) -> None:
            end = time.monotonic() + 30
            while not enough():
                assert time.monotonic() < end, "nothing is cleared any more"
                frontend.config(0, 8)  # and answer what is asked for meanwhile

        goes_on(lambda: len(slow.disk.cleared) > 2)
        for n in range(20):
            invalidate(max(pages) + (n + 1) * page)
        # Nor does it go back when the ring has to wait for its own pages.
        for part in session.ring(0).vring._parts[:3]:
            if (own := session.options.iommu.iova(part.gpa, 1) & -page) not in pages:
                before = len(slow.disk.cleared)
                invalidate(own)
                goes_on(lambda before=before: len(slow.disk.cleared) > before + 2)
        assert starts() == [0]
        invalidate(max(pages))
        goes_on(lambda: len(starts()) == 2)
        slow.disk.pace = 0
        assert queue.wait().buffer == OK
        check_whole(slow.disk.cleared[starts()[-1] :])


class Patient(vhost.Device):
    """Answers in as many steps as the request says, without a data path; 255 are as many as it likes."""

    name = "patient"
    num_queues = 2

    def __init__(self) -> None:
        self.enough = False
        self.closed = 0

    def process(self, chain: Chain) -> Iterator[None] | None:
        (n,) = chain.read()
        if not n:
            chain.write(b"quick")
        return self._count(chain, n) if n else None

    def _count(self, chain: Chain, n: int) -> Iterator[None]:
        try:
            while n and not (n == 255 and self.enough):
                time.sleep(0.001)
                yield
                n -= n != 255
        except GeneratorExit:
            self.closed += 1
            raise
        chain.write(b"slow")


@pytest.mark.parametrize("mode", ["threads", "asyncio"])
@every_kind
def test_a_device_in_python_serves_in_steps(kind: str, mode: str, tmp_path: Path) -> None:
    device = Patient()
    serving = Serving(device, mode, tmp_path / "socket", **ONE_WORKER[mode])
    options = {"queues": 2, "event_idx": False, "ram_size": 4 << 20, "timeout": 60.0} | KINDS[kind]
    with serving, vhost.connect(serving.path, **options) as frontend:
        queue = frontend.queue(0)
        tokens = [queue.submit(bytes([n]), 8, publish=False) for n in (0, 0, 0, 255, 0, 3, 0)]
        queue.publish()
        assert [queue.wait() for _ in range(3)] == [
            Completion(token, 5, b"quick".ljust(8, b"\xff")) for token in tokens[:3]
        ]
        for _ in range(3):
            assert frontend.request(b"\2", 8, queue=1) == b"slow"
        assert queue.completed() == []
        start = time.monotonic()
        frontend.stop(0)
        assert took(start) < AT_ONCE
        assert device.closed
        device.enough = True
        frontend.start(0)
        answers = [queue.wait() for _ in tokens[3:]]
        assert [answer.token for answer in answers] == tokens[3:]
        assert [answer.data for answer in answers] == [b"slow", b"quick", b"slow", b"quick"]
    assert serving.lines.having("has not returned|failed", "ERROR") == []


def test_a_step_that_fails_breaks_the_ring(tmp_path: Path) -> None:
    class Failing(Patient):
        def _count(self, chain: Chain, n: int) -> Iterator[None]:
            yield
            raise ZeroDivisionError("told to")

    with Serving(Failing(), "threads", tmp_path / "socket") as serving, serving.connect() as peer:
        ring = peer.ready()
        ring.add(b"\1", 8)
        ring.kick_it()
        assert readable(ring.err)
        serving.lines.wait("ring 0 is broken.*ZeroDivisionError", level="ERROR")
        peer.start(ring, peer.base())
        assert ring.request(b"\0", 8) == b"quick"


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """What was in flight is served again, from its start, and can be stopped then too."""
    path = tmp_path / "socket"

    @contextmanager
    def daemon(pace: float) -> Iterator[subprocess.Popen[str]]:
        script = Path(__file__).with_name("slow_disk.py")
        words = [sys.executable, str(script), str(path), str(pace * 1000)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def read(process: subprocess.Popen[str], pieces: int | None = None) -> list[tuple[int, int]]:
        assert process.stdout is not None
        lines = islice(process.stdout, pieces)
        return [(int(offset), int(length)) for offset, length in map(str.split, lines)]

    for packed in (False, True):
        with daemon(PACE) as first:
            frontend = connected(path, packed=packed, inflight=True, reconnect=60.0)
            queue = frontend.queue(0)
            token = queue.submit(everything(frontend), 1)
            assert read(first, 3)[0][0] == 0
        with daemon(PACE) as second:
            frontend.reconnect(seconds=60.0)
            assert read(second, 3)[0][0] == 0
            start = time.monotonic()
            frontend.stop(0)
            assert took(start) < AT_ONCE
            frontend.start(0)
            while read(second, 1)[0][0]:
                pass  # what was under way
        with daemon(0) as third:
            frontend.reconnect(seconds=60.0)
            assert queue.wait(token).buffer == OK
            assert frontend.request(request(frontend, Request.FLUSH), 1) == OK
            frontend.close()
            third.terminate()
            check_whole(read(third))


def connected(path: Path, **options: Any) -> Frontend:
    """Connect as soon as somebody listens."""
    end = time.monotonic() + 60
    while True:
        try:
            return vhost.connect(path, ram_size=4 << 20, timeout=60.0, **options)
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < end
            time.sleep(0.01)
