# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""DPDK's virtio-user drives vhost-net: over each kind of ring all frames arrive once, whole and in order."""

import os
import random
import re
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import pcap
from tests.lab.daemons import Daemon, ours
from tests.lab.peers import met
from tests.lab.testpmd import DPDK, TestPmd

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

MRG_RXBUF, RING_PACKED, IN_ORDER = 1 << 15, 1 << 34, 1 << 35
RING = 64  # entries: many laps
FRAMES = 1000
STATIONS = bytes.fromhex("02000000aa01"), bytes.fromhex("02000000aa02")
TEST_TYPE = b"\x88\xb5"  # IEEE 802, local experimental

# What virtio-user is asked to negotiate beyond the virtio 1.x that it always does.
KINDS = {
    "split": (),
    "split-mergeable": ("mrg_rxbuf",),
    "split-in-order": ("in_order",),
    "split-in-order-mergeable": ("in_order", "mrg_rxbuf"),
    "packed": ("packed_vq",),
    "packed-mergeable": ("packed_vq", "mrg_rxbuf"),
    "packed-in-order": ("packed_vq", "in_order"),
    "packed-in-order-mergeable": ("packed_vq", "in_order", "mrg_rxbuf"),
}
FEATURES = {"mrg_rxbuf": MRG_RXBUF, "packed_vq": RING_PACKED, "in_order": IN_ORDER}
KIND = pytest.mark.parametrize("kind", KINDS)
# Where virtio-user differs from the specification: a packed ring's base has its avail half only.
QUIRK = "--quirk=packed-base-16"


def virtio(number: int, path: Path, kind: str, queues: int = 1) -> str:
    """A port of testpmd that drives the backend at ``path``."""
    asked = ",".join(f"{option}={int(option in KINDS[kind])}" for option in FEATURES)
    return f"net_virtio_user{number},path={path},queues={queues},queue_size={RING},{asked}"


def quirks(kind: str) -> Sequence[str]:
    """What the daemon has to be told about the driver of such a ring."""
    return [QUIRK] if "packed_vq" in KINDS[kind] else []


def files(number: int, received: Path, sent: Path) -> str:
    """A port of testpmd that receives the frames in one file, and writes what it sends to another."""
    return f"net_pcap{number},rx_pcap={received},tx_pcap={sent}"


@contextmanager
def switch(work: Path, logs: Path, name: str, *options: str | os.PathLike[str]) -> Iterator[Daemon]:
    """A daemon, which must end in order."""
    with ours("vhost-net", *options, name=name, work=work, logs=logs) as daemon:
        yield daemon
        daemon.finish()
        assert not list(work.glob(f"{name}.sock*"))


def negotiated(daemon: Daemon, kind: str, connections: int = 1) -> None:
    """The features were those that the kind of ring is about, and no others of these."""
    found = [int(bits, 16) for bits in re.findall(r"virtio features (0x\w+) negotiated", daemon.output())]
    assert len(found) == connections, daemon.output()
    for features in found:
        assert [name for name, bit in FEATURES.items() if features & bit] == sorted(
            KINDS[kind], key=list(FEATURES).index
        ), f"{features:#x}"


@contextmanager
def forwarding(devices: Sequence[str], log: Path, *options: str) -> Iterator[TestPmd]:
    """testpmd that forwards frames between the first and the second port, the third and the fourth and so on.

    Where a ring is full it waits, and loses no frame.
    """
    with TestPmd(devices, log, options=options) as testpmd:
        testpmd.run("set fwd io retry")
        testpmd.run("set burst tx delay 10 retry 100000")
        testpmd.run("start")
        yield testpmd


def traffic(dice: random.Random, source: bytes, target: bytes) -> list[bytes]:
    """Frames of all sizes; each begins with its number."""
    head = target + source + TEST_TYPE
    sizes = [60, 61, 1513, 1514, *(dice.randrange(60, 1515) for _ in range(FRAMES - 4))]
    return [head + struct.pack("!I", n) + dice.randbytes(size - 18) for n, size in enumerate(sizes)]


@KIND
@met(DPDK, deed="two drivers on the switch of `vhost-net`, each kind of ring")
def test_frames_pass_between_two_drivers(work: Path, logs: Path, kind: str) -> None:
    dice = random.Random(kind)
    sent = [traffic(dice, STATIONS[i], STATIONS[1 - i]) for i in (0, 1)]
    record = work / f"{kind}.pcap"
    for i in (0, 1):
        pcap.write(work / f"in{i}.pcap", sent[i])
    with switch(work, logs, kind, "--socket-count=2", "--pcap", record, *quirks(kind)) as daemon:
        devices = [
            files(0, work / "in0.pcap", work / "out0.pcap"),
            virtio(0, Path(f"{daemon.socket}0"), kind),
            virtio(1, Path(f"{daemon.socket}1"), kind),
            files(1, work / "in1.pcap", work / "out1.pcap"),
        ]
        with forwarding(devices, logs / f"testpmd-{kind}.log") as testpmd:
            for port in (1, 2):
                testpmd.wait(port, "TX-packets", FRAMES)
                testpmd.wait(port, "RX-packets", FRAMES)
            testpmd.run("stop")
            testpmd.finish()
        negotiated(daemon, kind, 2)
    recorded = pcap.read(record)
    assert len(recorded) == 2 * FRAMES
    for i in (0, 1):
        assert [frame for frame in recorded if frame[6:12] == STATIONS[i]] == sent[i]
        assert pcap.read(work / f"out{1 - i}.pcap") == sent[i]


def checksum(data: bytes) -> int:
    """The Internet checksum; 0 over what contains a right one."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ping(target: bytes, source: bytes, hosts: bytes, sequence: int, text: bytes) -> bytes:
    """An echo request.

    :param hosts: two addresses, from and to.
    """
    message = struct.pack("!BBHHH", 8, 0, 0, 77, sequence) + text
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    head = struct.pack("!BBHHHBBH8s", 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0, hosts)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return target + source + b"\x08\x00" + head + message


@KIND
@met(DPDK, deed="ARP and pings with the responder of `vhost-net`, each kind of ring")
def test_the_responder_answers_a_driver(work: Path, logs: Path, kind: str) -> None:
    dice, me, mine, its = random.Random(kind), STATIONS[0], b"\x0a\x00\x02\x63", b"\x0a\x00\x02\x01"
    question = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, me, mine, bytes(6), its)
    texts = [dice.randbytes(dice.randrange(1473)) for _ in range(FRAMES - 1)]
    requests = [b"\xff" * 6 + me + b"\x08\x06" + question]
    requests += [ping(b"\xff" * 6, me, mine + its, n, text) for n, text in enumerate(texts)]
    name = f"responder-{kind}"
    pcap.write(work / "in.pcap", requests)
    with switch(work, logs, name, "--respond=10.0.2.0/24", *quirks(kind)) as daemon:
        devices = [files(0, work / "in.pcap", work / "out.pcap"), virtio(0, daemon.socket, kind)]
        with forwarding(devices, logs / f"testpmd-{name}.log") as testpmd:
            testpmd.wait(1, "RX-packets", FRAMES)
            testpmd.finish()
        negotiated(daemon, kind)
    resolved, *answers = pcap.read(work / "out.pcap")
    mac = resolved[6:12]
    assert resolved[:42] == me + mac + b"\x08\x06" + struct.pack(
        "!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 2, mac, its, me, mine
    )
    assert len(answers) == len(texts)
    for n, (answer, text) in enumerate(zip(answers, texts, strict=True)):
        assert answer[:14] == me + mac + b"\x08\x00"
        assert (checksum(answer[14:34]), checksum(answer[34:])) == (0, 0)
        assert answer[26:34] == its + mine
        assert answer[34:36] + answer[38:] == struct.pack("!BBHH", 0, 0, 77, n) + text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if quirks(kind)])
@met(DPDK, deed="packed rings without `--quirk packed-base-16`: the driver never sees what was used")
def test_packed_rings_need_the_quirk(work: Path, logs: Path, kind: str) -> None:
    name = f"no-quirk-{kind}"
    frames = traffic(random.Random(kind), *STATIONS)
    record = work / f"{name}.pcap"
    pcap.write(work / "in.pcap", frames)
    with switch(work, logs, name, "--respond=10.0.2.0/24", "--pcap", record) as daemon:
        devices = [files(0, work / "in.pcap", work / "out.pcap"), virtio(0, daemon.socket, kind)]
        with forwarding(devices, logs / f"testpmd-{name}.log") as testpmd:
            # The device takes what is on the ring, once: none of it comes back to the driver, who gets stuck.
            testpmd.wait(1, "TX-packets", 1)
            before, sent = 0, testpmd.count(1, "TX-packets")
            while sent != before:
                time.sleep(0.5)
                before, sent = sent, testpmd.count(1, "TX-packets")
            assert sent <= RING
        negotiated(daemon, kind)
    assert pcap.read(record) == frames[:sent]
