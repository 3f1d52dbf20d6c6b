# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The default build and front-ends of Xen guests: refused in words, nothing mapped, and on it goes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backend.echo import Echo
from tests.backend.peer import Peer
from tests.backend.serving import Serving
from vhost.protocol import (
    GetFeatures,
    GetProtocolFeatures,
    MemoryRegion,
    ProtocolFeature,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
)

FOREIGN, GRANT, NO_ADVANCE = 0x1, 0x2, 0x100
BIT = 1 << 63


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Serving]:
    with Serving(Echo(), "threads", tmp_path / "socket") as serving:
        yield serving


def test_xen_mmap_is_neither_offered_nor_taken(echo: Serving) -> None:
    with echo.connect() as peer:
        peer.value(GetFeatures())
        assert not peer.value(GetProtocolFeatures()) & ProtocolFeature.XEN_MMAP
        peer.tell(SetProtocolFeatures(ProtocolFeature.REPLY_ACK))
        peer.refused(SetProtocolFeatures(ProtocolFeature.REPLY_ACK | ProtocolFeature.XEN_MMAP))
        echo.lines.wait(
            r"refused: SET_PROTOCOL_FEATURES.*XEN_MMAP \(0x20000\): this is the default build .*"
            r"pip install 'vhost\[xen\]'",
            level="WARNING",
        )


@pytest.mark.parametrize("flags", [FOREIGN, GRANT, GRANT | NO_ADVANCE])
def test_regions_of_xen_are_refused(echo: Serving, flags: int) -> None:
    with echo.connect() as peer:
        peer.negotiate()
        peer.do(SetOwner())
        send_as_xen(peer, SetMemTable((MemoryRegion(BIT, 0x4000, BIT, 0, flags, domid=5),)))
        echo.lines.wait(
            r"SET_MEM_TABLE with 1 regions has a payload of 48 bytes, not 40 \(or up to 264 .*\); "
            "regions of 40 bytes need XEN_MMAP, which was not negotiated",
            level="WARNING",
        )
        assert not echo.lines.having("Traceback", "ERROR")
        # The same connection can still be given memory that comes as a file.
        peer.do(SetMemTable((peer.region(),)), [peer.ram])
        ring = peer.ring()
        peer.start(ring)
        assert ring.request(b"all the same") == b"emas eht lla"


def send_as_xen(peer: Peer, message: SetMemTable) -> None:
    """What a front-end sends that believes XEN_MMAP was negotiated: it must get an error ack."""
    mine = peer.connection.protocol_features
    peer.connection.protocol_features = mine | ProtocolFeature.XEN_MMAP
    peer.refused(message, [peer.ram])
    peer.connection.protocol_features = mine
