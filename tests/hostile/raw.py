# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bytes that no decent front-end sends, and the check that a server has survived them."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.backend.peer import Peer
from tests.backend.serving import Serving
from vhost.io import recv_fds, send_fds

HEADER = struct.Struct("=III")
VERSION = 1
REPLY = 1 << 2
NEED_REPLY = 1 << 3


@contextmanager
def survived(server: Serving) -> Iterator[Peer]:
    """A connection for mischief: before and after it a good request is served, and nothing is left of it."""
    good_request(server)
    before = server.settled(1)
    with server.connect() as peer:
        yield peer
    assert server.settled(2) == before, "descriptors or mappings are left"
    good_request(server)
    assert server.settled(3) == before


def good_request(server: Serving) -> None:
    """A connection with one request that is answered as it should be."""
    with server.connect() as peer:
        assert peer.ready().request(b"good") == b"doog"


def send(
    peer: Peer,
    request: int,
    payload: bytes = b"",
    fds: Sequence[int] = (),
    *,
    flags: int = VERSION | NEED_REPLY,
    size: int | None = None,
) -> None:
    """One message, with whatever header."""
    data = HEADER.pack(request, flags, len(payload) if size is None else size) + payload
    assert send_fds(peer.sock, data, fds) == len(data)


def answer(peer: Peer) -> tuple[int, int, bytes]:
    """Request, flags and payload of the next answer, or of nothing when the connection has ended."""
    data = _exactly(peer, HEADER.size)
    request, flags, size = HEADER.unpack(data)
    return request, flags, _exactly(peer, size)


def _exactly(peer: Peer, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more, fds = recv_fds(peer.sock, size - len(data))
        assert more, f"the connection ended after {len(data)} of {size} bytes"
        assert not fds
        data += more
    return data
