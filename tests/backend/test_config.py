# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The configuration space at the socket: the driver's writes, those of a migration, and what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.backend.peer import FEATURES, Peer
from tests.backend.serving import Serving
from vhost.devices.blk import Blk
from vhost.devices.memory_disk import MemoryDisk
from vhost.protocol import ConfigReply, GetConfig, SetConfig
from vhost.virtio.blk import WRITEBACK, BlkFeature, ConfigSpace

DRIVER, MIGRATION = 0, 1
SIZE = ConfigSpace.size()


@contextmanager
def served(mode: str, folder: Path, quirks: str = "") -> Iterator[Serving]:
    device = Blk(MemoryDisk(1 << 20))
    with Serving(device, mode, folder / "socket", quirks=quirks) as serving:
        yield serving
    device.close()


@pytest.fixture(params=["threads", "asyncio"])
def disk(unix_build: None, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    with served(request.param, tmp_path) as serving:
        yield serving


def space(peer: Peer) -> bytes:
    value = peer.ask(GetConfig(0, SIZE)).value
    assert isinstance(value, ConfigReply)
    return value.data


def driven(serving: Serving) -> Peer:
    """A front-end with a driver that may choose the cache mode."""
    peer = serving.connect()
    peer.negotiate(int(FEATURES | BlkFeature.FLUSH | BlkFeature.CONFIG_WCE))
    return peer


def with_writeback(whole: bytes, value: int) -> bytes:
    return whole[:WRITEBACK] + bytes([value]) + whole[WRITEBACK + 1 :]


def test_a_driver_changes_what_is_its_own(disk: Serving) -> None:
    with driven(disk) as peer:
        whole = space(peer)
        peer.do(SetConfig(WRITEBACK, DRIVER, b"\0"))
        assert space(peer) == with_writeback(whole, 0)
        # The whole space for the sake of one byte, as some front-ends write it.
        peer.do(SetConfig(0, DRIVER, with_writeback(whole, 1)))
        assert space(peer) == whole
        peer.do(SetConfig(8, DRIVER, whole[8:16]))


def test_a_driver_changes_nothing_else(disk: Serving) -> None:
    with driven(disk) as peer:
        whole = space(peer)
        # Together with its own field too, which then stays as it was.
        other = ConfigSpace.unpack(whole)._replace(capacity=4096, seg_max=1, writeback=0).pack()
        peer.refused(SetConfig(0, DRIVER, other))
        disk.lines.wait("SET_CONFIG.*the driver writes capacity, seg_max, which it may only read")
        peer.refused(SetConfig(0, DRIVER, b"\xff"))
        peer.refused(SetConfig(SIZE - 1, DRIVER, b"\0\0"))
        assert space(peer) == whole


def test_migration_brings_the_space_from_elsewhere(disk: Serving, caplog: pytest.LogCaptureFixture) -> None:
    with disk.connect() as peer:
        peer.negotiate()  # a driver that may not choose; who migrates asks nobody
        whole = space(peer)
        other = ConfigSpace.unpack(with_writeback(whole, 1))._replace(capacity=4096, seg_max=1).pack()
        peer.do(SetConfig(0, MIGRATION, other))
        assert "another capacity, seg_max; this disk's stays" in caplog.text
    with driven(disk) as peer:
        whole = space(peer)
        peer.do(SetConfig(WRITEBACK, MIGRATION, b"\0"))
        assert space(peer) == with_writeback(whole, 0)
        peer.refused(SetConfig(WRITEBACK, MIGRATION, b"\2"))


@pytest.mark.parametrize("flags", [2, 3, 0x8000_0000])
def test_unknown_flags(disk: Serving, flags: int) -> None:
    with driven(disk) as peer:
        whole = space(peer)
        peer.refused(SetConfig(WRITEBACK, flags, b"\0"))
        disk.lines.wait(f"flags {flags:#x}; 0, a write of the driver, and 1, migration, are known")
        assert space(peer) == whole


@pytest.mark.parametrize("mode", ["threads", "asyncio"])
@pytest.mark.usefixtures("unix_build")
def test_flags_of_front_ends_that_count_them_from_one(mode: str, tmp_path: Path) -> None:
    driver, migration = 1, 2
    with served(mode, tmp_path, "set-config-flags") as disk, driven(disk) as peer:
        whole = space(peer)
        other = ConfigSpace.unpack(whole)._replace(seg_max=1).pack()
        peer.do(SetConfig(WRITEBACK, driver, b"\0"))
        assert space(peer) == with_writeback(whole, 0)
        peer.refused(SetConfig(0, driver, other))
        assert space(peer) == with_writeback(whole, 0)
        peer.do(SetConfig(0, migration, other))
        assert space(peer) == whole
        peer.refused(SetConfig(WRITEBACK, 3, b"\0"))
