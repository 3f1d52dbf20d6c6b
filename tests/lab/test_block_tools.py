# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Disks copied by programs that ask for zeroes in longer ranges than a device says it likes."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.block_tools import NBDCOPY, NBDKIT, QEMU_IMG, nbdcopy, nbdkit, qemu_img
from tests.lab.daemons import Daemon, ours
from tests.lab.peers import met

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

MIB = 1 << 20
DISK_MIB = 512
# Where source and disk have data, so that there is something to be zeroed in the gaps.
SOURCE = (0, 1, 130, 300, DISK_MIB - 1)
BEFORE = (0, 2, 200, 400, DISK_MIB - 2)


def make(path: Path, places: tuple[int, ...]) -> Path:
    """A sparse image with a MiB of random data at each place."""
    chance = random.Random(path.name)
    with path.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
        for place in places:
            file.seek(place * MIB)
            file.write(chance.randbytes(MIB))
    return path


def differing(one: Path, other: Path) -> list[int]:
    """The MiB in which two images differ."""
    assert one.stat().st_size == other.stat().st_size == DISK_MIB * MIB
    with one.open("rb") as left, other.open("rb") as right:
        return [place for place in range(DISK_MIB) if left.read(MIB) != right.read(MIB)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "source.img", SOURCE)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make(tmp_path / "disk.img", BEFORE)


@pytest.fixture(params=["auto", "sync"])
def daemon(image: Path, work: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    options = ("--blk-file", image, "--io", request.param)
    with ours("vhost-blk", *options, name="blk", work=work, logs=tmp_path) as daemon:
        yield daemon
        daemon.finish()


@met(QEMU_IMG, deed="copies an image to `vhost-blk` and back, with its driver virtio-blk-vhost-user")
def test_qemu_img_convert(daemon: Daemon, source: Path, image: Path, tmp_path: Path) -> None:
    disk = f"driver=virtio-blk-vhost-user,path={daemon.socket},cache.direct=on"
    qemu_img("convert", "-n", "-f", "raw", source, "--target-image-opts", disk)
    assert differing(source, image) == []
    # What was zeroed takes no more space than it did in the source.
    assert image.stat().st_blocks <= (len(SOURCE) + 1) * MIB // 512
    back = tmp_path / "back.img"
    qemu_img("convert", "-O", "raw", "--image-opts", disk, back)
    assert differing(source, back) == []


@met(NBDCOPY, NBDKIT, deed="copy an image to `vhost-blk` and back, through nbdkit's blkio plugin")
def test_nbdcopy(daemon: Daemon, source: Path, image: Path, tmp_path: Path, work: Path) -> None:
    with nbdkit(daemon.socket, work / "nbd.sock", tmp_path / "nbdkit.log") as disk:
        nbdcopy("--flush", source, disk)
        assert differing(source, image) == []
        back = tmp_path / "back.img"
        os.truncate(make(back, ()), DISK_MIB * MIB)
        nbdcopy(disk, back)
        assert differing(source, back) == []
