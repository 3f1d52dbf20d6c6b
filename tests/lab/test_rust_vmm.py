# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""rust-vmm's front-end, the one of cloud-hypervisor and libkrun, drives our backends."""

import random
import struct
from pathlib import Path

import pytest

from tests.lab import rust
from tests.lab.daemons import ours
from tests.lab.peers import met
from tests.lab.rust import RUST_VMM
from vhost.protocol import VirtioFeature
from vhost.virtio.net import NetHeader

# The first run downloads a compiler.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

FEATURES = VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES
SECTOR, SECTORS = 512, 64
READ, WRITE = 0, 1


@met(RUST_VMM, deed="drives `vhost-net`: four rings, ARP by each pair")
def test_a_card_has_as_many_rings_as_it_says(work: Path, logs: Path) -> None:
    """This front-end does not name a ring with a number that is not below GET_QUEUE_NUM's."""
    me, mine, its = bytes.fromhex("02000000aa01"), b"\x0a\x00\x02\x63", b"\x0a\x00\x02\x01"
    kind = struct.pack("!HHBB", 1, 0x800, 6, 4)
    question = b"\xff" * 6 + me + b"\x08\x06" + kind + b"\0\1" + me + mine + bytes(6) + its
    frame = NetHeader().pack() + question
    requests = [(ring, b"", 2048) for ring in (0, 2)] + [(ring, frame, 0) for ring in (1, 3)]
    options = ("--respond=10.0.2.0/24", "--num-queues=2")
    with ours("vhost-net", *options, name="rust-net", work=work, logs=logs) as daemon:
        answers = dict(rust.run(daemon.socket, 4, requests, features=FEATURES, answers=4))
        daemon.finish()
    assert answers.keys() == {0, 1, 2, 3}
    for ring in (0, 2):
        header, answer = answers[ring][: len(NetHeader().pack())], answers[ring][len(NetHeader().pack()) :]
        assert NetHeader.unpack(header).num_buffers == 1
        mac = answer[6:12]
        assert answer == me + mac + b"\x08\x06" + kind + b"\0\2" + mac + its + me + mine


@met(RUST_VMM, deed="drives `vhost-blk`: reads and writes, a split ring")
def test_a_disk(work: Path, logs: Path) -> None:
    dice, image = random.Random(1), work / "rust.img"
    disk = bytearray(dice.randbytes(SECTORS * SECTOR))
    image.write_bytes(disk)
    written = dice.randbytes(3 * SECTOR)
    requests = [
        (0, struct.pack("<IIQ", WRITE, 0, 7) + written, 1),
        (0, struct.pack("<IIQ", READ, 0, 1), SECTOR + 1),
        (0, struct.pack("<IIQ", READ, 0, SECTORS), SECTOR + 1),
    ]
    with ours("vhost-blk", "--blk-file", image, name="rust-blk", work=work, logs=logs) as daemon:
        answers = rust.run(daemon.socket, 1, requests, features=FEATURES, answers=3)
        daemon.finish()
    assert sorted(answer for _, answer in answers) == sorted(
        (b"\0", bytes(disk[SECTOR : 2 * SECTOR]) + b"\0", bytes(SECTOR) + b"\1")
    )
    disk[7 * SECTOR : 10 * SECTOR] = written
    assert image.read_bytes() == disk
