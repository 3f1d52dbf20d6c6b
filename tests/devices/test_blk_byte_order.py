# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The fields of requests in the byte order of their ring, written by hand, through a socket."""

import os
import struct
from pathlib import Path
from typing import Any

import pytest

import vhost
from tests.frontend.served import served
from vhost.devices.blk import Blk as BlkDevice
from vhost.frontend import Blk
from vhost.protocol import VirtioFeature
from vhost.virtio.blk import BlkRequest as Request
from vhost.virtio.blk import BlkStatus as Status

from .blk_requests import KINDS, SECTORS, make

pytestmark = pytest.mark.usefixtures("no_leaks", "unix_build")

LEGACY = int(VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.RING_INDIRECT_DESC)
#: Options of a ring; the order that is right for the fields of its requests, and the one that is wrong.
ORDERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "modern": ({}, "<", ">"),
    "packed": ({"packed": True}, "<", ">"),
    "legacy little-endian": ({"features": LEGACY}, "<", ">"),
    "legacy big-endian": ({"big_endian": True}, ">", "<"),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_request_in_its_order(tmp_path: Path, kind: str, order: str) -> None:
    options, right, _ = ORDERS[order]
    backed = make(kind, tmp_path)
    device = BlkDevice(backed.disk(), serial="order")
    data, ok = os.urandom(1024), bytes([Status.OK])
    with served(device) as sock, vhost.connect(sock, **options) as frontend:

        def ask(request: Request, sector: int, *readable: bytes, room: int = 0) -> bytes:
            header = struct.pack(right + "IIQ", request, 0, sector)
            return frontend.request([header, *readable], [*([room] if room else []), 1])

        def segment(sector: int, sectors: int) -> bytes:
            return struct.pack(right + "QII", sector, sectors, 0)

        assert ask(Request.OUT, 258, data) == ok
        assert ask(Request.IN, 257, room=2048) == backed.initial[257 * 512 :][:512] + data + (
            backed.initial[260 * 512 :][:512] + ok
        )
        assert ask(Request.FLUSH, 0) == ok
        assert ask(Request.GET_ID, 0, room=20) == b"order".ljust(20, b"\0") + ok
        assert ask(Request.WRITE_ZEROES, 0, segment(260, 3)) == ok
        if device.features & 1 << 13:
            assert ask(Request.DISCARD, 0, segment(1024, 8)) == ok
        contents = backed.contents()
    device.close()
    expected = bytearray(backed.initial)
    expected[258 * 512 : 260 * 512] = data
    expected[260 * 512 : 263 * 512] = bytes(1536)
    assert contents[: 512 * 1024] == expected[: 512 * 1024]
    assert contents[512 * 1032 :] == expected[512 * 1032 :]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_other_order_is_something_else(tmp_path: Path, kind: str, order: str) -> None:
    options, _, wrong = ORDERS[order]
    backed = make(kind, tmp_path)
    device = BlkDevice(backed.disk())
    with served(device) as sock, vhost.connect(sock, **options) as frontend:

        def ask(request: Request, sector: int, *readable: bytes, room: int = 0) -> int:
            header = struct.pack(wrong + "IIQ", request, 0, sector)
            return frontend.request([header, *readable], [*([room] if room else []), 1])[-1]

        # A type that is unknown in this order, and one that is the same in both, IN, beyond the end.
        assert ask(Request.OUT, 1, bytes(512)) == Status.UNSUPP
        assert ask(Request.GET_ID, 0, room=20) == Status.UNSUPP
        assert ask(Request.WRITE_ZEROES, 0, struct.pack(wrong + "QII", 0, 8, 0)) == Status.UNSUPP
        assert ask(Request.IN, 1, room=512) == Status.IOERR
        assert backed.contents() == backed.initial
    device.close()


@pytest.mark.parametrize("order", ORDERS)
def test_our_frontend_writes_them_so(tmp_path: Path, order: str) -> None:
    backed = make("sync", tmp_path)
    device = BlkDevice(backed.disk(), serial="order")
    data = os.urandom(4096)
    with served(device) as sock, vhost.connect(sock, **ORDERS[order][0]) as frontend:
        blk = Blk(frontend)
        assert (blk.capacity, blk.serial()) == (SECTORS * 512, "order")
        blk.write(4096, data)
        blk.write_zeroes(4096, 512)
        blk.flush()
        assert blk.read(0, 12288) == (
            backed.initial[:4096] + bytes(512) + data[512:] + backed.initial[8192:12288]
        )
    device.close()
