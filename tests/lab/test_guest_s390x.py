# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guests on big-endian machines use vhost-net, by legacy rings, which are big-endian, and by modern ones."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.card import negotiated, network
from tests.lab.guest import Guest
from tests.lab.namespace import Namespace
from tests.lab.peers import met
from tests.lab.prerequisites import tool
from tests.lab.s390x import LINUX_S390X, QEMU_S390X, card, guest, write_s390x_root
from tests.lab.transfer import Source, connect, connect_here, listen, result, send, take

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

VERSION_1 = 32
OFFLOADS = {"CSUM": 0, "GUEST_CSUM": 1, "GUEST_TSO4": 7, "HOST_TSO4": 11, "MRG_RXBUF": 15}


@pytest.fixture(scope="module")
def booting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The guests' kernel and root."""
    root = tmp_path_factory.mktemp("root") / "root.cpio"
    return write_s390x_root(root).image, root


@pytest.fixture(scope="module")
def source(work: Path) -> Source:
    """A few MiB: the emulator is slow."""
    return Source(Source.make(work).image, 1)


def ping(guest: Guest, address: str) -> None:
    """All of some pings are answered."""
    said = guest.run(f"ping -c 5 -i 0.1 -s 1400 {address}")
    assert "5 packets transmitted, 5 packets received, 0% packet loss" in said, said


@met(QEMU_S390X, LINUX_S390X, deed="`vhost-net`: legacy and modern driver on the switch, pings and streams")
def test_a_legacy_and_a_modern_driver(
    booting: tuple[Path, Path], source: Source, work: Path, logs: Path
) -> None:
    wanted = source.digest()
    with network(work, logs, "switch", "--respond=10.0.2.0/24", sockets=2) as daemon, ExitStack() as stack:
        ends = []
        for number, legacy in enumerate((True, False)):
            devices = (*card(Path(f"{daemon.socket}{number}"), number, legacy=legacy), *source.devices)
            it = stack.enter_context(guest(*booting, devices, logs / f"switch-{number}", [daemon]))
            assert (VERSION_1 in negotiated(it)) != legacy
            it.run(f"ip address add 10.0.2.{2 + number}/24 dev eth0; ip link set eth0 up")
            ping(it, "10.0.2.1")
            ends.append(it)
        for number, end in enumerate(ends):
            ping(end, f"10.0.2.{3 - number}")
            listen(end, 5000, take("/tmp/sum"))
        for number, end in enumerate(ends):
            connect(end, f"10.0.2.{3 - number}", 5000, send(source))
        for end in ends:
            assert result(end, "/tmp/sum") == wanted


@met(QEMU_S390X, LINUX_S390X, deed="`vhost-net`: TAP with offloads, legacy driver")
def test_a_legacy_driver_and_this_kernel(
    booting: tuple[Path, Path], source: Source, work: Path, logs: Path
) -> None:
    """Checksums and segments are left to the other side: all fields of the header count."""
    wanted, sum_here = source.digest(), work / "tap.sum"
    with (
        Namespace(logs) as namespace,
        network(work, logs, "tap", "--tap=tap0", prefix=namespace.prefix) as daemon,
    ):
        namespace.run("ip address add 10.0.8.1/24 dev tap0; ip link set tap0 up")
        devices = (*card(daemon.socket, 1, legacy=True), *source.devices)
        with guest(*booting, devices, logs / "tap", [daemon]) as it:
            features = negotiated(it)
            assert VERSION_1 not in features
            assert set(OFFLOADS.values()) <= features, f"{features} of {OFFLOADS}"
            it.run("ip address add 10.0.8.2/24 dev eth0; ip link set eth0 up")
            namespace.run(f"{tool('busybox')} ping -c 5 -W 10 10.0.8.2")
            listen(it, 5000, take("/tmp/sum"))
            connect_here(namespace, "10.0.8.2", 5000, send(source, str(source.image)))
            assert result(it, "/tmp/sum") == wanted
            listen(it, 5001, send(source))
            connect_here(namespace, "10.0.8.2", 5001, take(str(sum_here)))
            assert sum_here.read_text().split()[0] == wanted
