# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What front-ends send that is a little off, or early, and is taken all the same."""

import struct

import pytest

from tests.backend.peer import Peer
from tests.backend.serving import Serving
from tests.hostile.raw import answer, send
from vhost.protocol import SetMemTable, SetOwner


@pytest.mark.parametrize("carried", range(1, 9))
def test_a_table_that_carries_more_regions_than_it_counts(server: Serving, carried: int) -> None:
    with server.connect() as peer:
        peer.negotiate()
        peer.do(SetOwner())
        region = struct.pack("=QQQQ", *peer.region()[:4])
        send(
            peer, SetMemTable.request, struct.pack("=I4x", 1) + region + bytes(32 * (carried - 1)), [peer.ram]
        )
        assert answer(peer) == (SetMemTable.request, 5, bytes(8))
        works(peer)


def works(peer: Peer) -> None:
    ring = peer.ring()
    peer.start(ring)
    assert ring.request(b"as ever") == b"reve sa"
