# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Daemons that are killed under load and started again: every request is answered once, and data are right.

``VHOST_KILLS`` says how often each of the cases below is killed; a run for CI has 500 kills in all.
"""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

import vhost
from tests.cli.programs import TIMEOUT, command, environment
from vhost.frontend import Blk, Frontend

pytestmark = pytest.mark.usefixtures("unix_build")

KILLS = int(os.environ.get("VHOST_KILLS", "8"))
DEPTH = 32
BLOCK = 4096
BLOCKS = 2048


class Victim:
    """A daemon that is killed now and then; each time once it has answered something. A context manager."""

    def __init__(self, path: Path, module: str, *options: str, seed: int) -> None:
        self._command = command(module, "-q", "--socket-path", str(path), *options)
        self._random = random.Random(seed)
        self.kills = 0
        self._start()
        end = time.monotonic() + TIMEOUT
        while not listens(path):
            assert time.monotonic() < end, "the daemon does not listen"
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, env=environment(), stderr=subprocess.PIPE, text=True)
        self._answered, self._at = 0, 0.0

    def answered(self) -> None:
        """A request has come back. Kills the daemon at a random moment after the first of them."""
        self._answered += 1
        now = time.monotonic()
        if self._answered == 1:
            self._at = now + self._random.expovariate(1 / 0.01)
        elif now >= self._at and self.kills < KILLS:
            self._process.send_signal(signal.SIGKILL)
            _, log = self._process.communicate(timeout=TIMEOUT)
            assert "error" not in log, log
            self.kills += 1
            self._start()

    def end(self) -> None:
        """End it as a service manager would."""
        self._process.terminate()
        _, log = self._process.communicate(timeout=TIMEOUT)
        assert self._process.returncode == 0, log


def listens(path: Path) -> bool:
    """Whether it does already; there is a moment between the socket's being there and that."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


Connect = Callable[[Path], Frontend]


@pytest.fixture(params=["split", "packed"])
def connect(request: pytest.FixtureRequest) -> Connect:
    def to(path: Path) -> Frontend:
        packed = request.param == "packed"
        return vhost.connect(path, packed=packed, inflight=True, reconnect=TIMEOUT, ram_size=16 << 20)

    return to


@pytest.mark.timeout(60 + 2 * KILLS)
@pytest.mark.parametrize("io", ["map", "uring", "sync"])
def test_a_disk_loses_nothing(tmp_path: Path, connect: Connect, io: str) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(BLOCKS * BLOCK)
    options = "--blk-file", str(image), "--io", io
    chance = random.Random(2)
    content: dict[int, bytes] = {}
    flying: dict[int, tuple[int, bytes | None]] = {}
    busy: set[int] = set()
    with (
        Victim(tmp_path / "socket", "vhost.daemon.blk", *options, seed=1) as victim,
        connect(tmp_path / "socket") as device,
    ):
        disk = Blk(device)
        while victim.kills < KILLS or flying:
            while victim.kills < KILLS and len(flying) < DEPTH:
                block = chance.randrange(BLOCKS)
                if block in busy:
                    continue
                busy.add(block)
                if chance.random() < 0.6:
                    data = chance.randbytes(64) * (BLOCK // 64)
                    flying[disk.submit_write(block * BLOCK, data)] = block, data
                else:
                    flying[disk.submit_read(block * BLOCK, BLOCK)] = block, None
            token, got = next(disk.drain())
            block, written = flying.pop(token)  # fails if it was answered before
            busy.remove(block)
            if written is None:
                assert got == content.get(block, bytes(BLOCK))
            else:
                content[block] = written
            victim.answered()
        for block, data in content.items():
            assert disk.read(block * BLOCK, BLOCK) == data
        victim.end()
    assert image.read_bytes() == b"".join(content.get(block, bytes(BLOCK)) for block in range(BLOCKS))


@pytest.mark.timeout(60 + 2 * KILLS)
@pytest.mark.parametrize("source", ["native", "python"])
def test_a_random_number_generator_answers_once(tmp_path: Path, connect: Connect, source: str) -> None:
    options = [] if source == "native" else ["--rng-source", "/dev/urandom"]
    flying: set[int] = set()
    with (
        Victim(tmp_path / "socket", "vhost.daemon.rng", *options, seed=3) as victim,
        connect(tmp_path / "socket") as device,
    ):
        queue = device.queue(0)
        while victim.kills < KILLS or flying:
            while victim.kills < KILLS and len(flying) < DEPTH:
                token = queue.submit([], [64])
                assert token is not None
                flying.add(token)
            done = queue.wait()
            flying.remove(done.token)
            assert 0 < done.written <= 64
            assert done.data.count(done.data[0]) < 32 or done.written < 16
            victim.answered()
        assert device.request(writable=64)  # the last one that was started is there
        victim.end()
