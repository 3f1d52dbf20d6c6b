# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Packed rings that break the rules, and inflight regions that lie: one ring breaks, and nothing else."""

import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import vhost
from tests.backend.peer import readable
from tests.backend.serving import Serving
from tests.hostile.raw import good_request
from vhost.errors import RefusedError
from vhost.frontend import Frontend
from vhost.frontend.ram import GUEST_BASE
from vhost.protocol import SetInflightFd

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
SIZE = 10
RAM = 1 << 20
END = GUEST_BASE + RAM

MISCHIEF = {
    "loop": ([(GUEST_BASE, 1, NEXT)] * SIZE, "loops"),
    "outside": ([(0x1000, 4, 0)], "4 bytes at guest address 0x1000"),
    "across-the-end": ([(END - 4, 8, WRITE)], f"8 bytes at guest address {END - 4:#x}"),
    "past-all-addresses": ([(2**64 - 4, 8, 0)], "8 bytes at guest address 0xfffffffffffffffc"),
    "writable-first": ([(GUEST_BASE, 4, WRITE | NEXT), (GUEST_BASE, 4, 0)], "readable buffer behind"),
    "indirect-and-next": ([(GUEST_BASE, 16, INDIRECT | NEXT), (GUEST_BASE, 4, 0)], "INDIRECT and NEXT"),
    "indirect-of-odd-length": ([(GUEST_BASE, 17, INDIRECT)], "indirect table of 17 bytes"),
    "indirect-of-no-length": ([(GUEST_BASE, 0, INDIRECT)], "indirect table of 0 bytes"),
    "indirect-outside": ([(END, 16, INDIRECT)], "16 bytes at guest address"),
}


@contextmanager
def driven(server: Serving, **options: Any) -> Iterator[Frontend]:
    """A frontend with two packed rings; the server has to be as good as before when it is gone."""
    good_request(server)
    before = server.settled(1)
    rings = {"packed": True, "queue_size": SIZE, "queues": 2, "ram_size": RAM}
    with vhost.connect(server.path, **rings, **options) as frontend:
        yield frontend
    assert server.settled(2) == before, "descriptors or mappings are left"
    good_request(server)
    assert server.settled(3) == before


def lay(frontend: Frontend, descriptors: list[tuple[int, int, int]]) -> int:
    """Put descriptors on ring 0, which is at its begin, and kick; the descriptor that says it is broken."""
    vring = frontend._session.ring(0).vring
    for i, (addr, length, flags) in reversed([*enumerate(descriptors)]):
        vring._parts[0].view[16 * i : 16 * i + 16] = struct.pack("<QIHH", addr, length, i, flags | AVAIL)
    vring.kick()
    return vring.err


@pytest.mark.parametrize("name", MISCHIEF)
def test_bad_ring_breaks_alone(server: Serving, name: str) -> None:
    descriptors, line = MISCHIEF[name]
    with driven(server) as frontend:
        assert readable(lay(frontend, descriptors)), "the front-end is not told"
        server.lines.wait(f"ring 0 is broken until it is set up anew: .*({line})", level="ERROR")
        assert frontend.request(b"fine", 64, queue=1) == b"enif"
        assert frontend.stop(0) == 0x8000_8000


def test_noise_on_a_ring(server: Serving) -> None:
    rng = random.Random(1)
    with driven(server) as frontend:
        for _ in range(50):
            vring = frontend._session.ring(0).vring
            for _ in range(5):
                vring._parts[0].view[:] = rng.randbytes(16 * SIZE)
                vring.kick()
            assert frontend.request(b"fine", 64, queue=1) == b"enif"
            frontend.reset()
            for index in (0, 1):
                frontend.start(index)
            assert frontend.request(b"anew", 64) == b"wena"


def test_region_that_lies(server: Serving) -> None:
    stride = 32 + 32 * SIZE
    with driven(server, inflight=True) as frontend:
        fd = os.memfd_create("lies")
        os.ftruncate(fd, 2 * stride)
        frontend.stop(0)
        # In use, and with no entry that is either free or in flight.
        os.pwrite(fd, struct.pack("<QHHHHQ", 0, 1, SIZE, 0xFFFF, 0xFFFF, 0x0101_0000_0000), 0)
        frontend.exchange(SetInflightFd(2 * stride, 0, 2, SIZE), (fd,))
        os.close(fd)
        with pytest.raises(RefusedError):
            frontend.start(0)
        assert frontend.request(b"fine", 64, queue=1) == b"enif"
