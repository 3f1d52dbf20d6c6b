# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A Linux guest and this machine's kernel, with a TAP interface and vhost-net between them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.card import card, guest, negotiated, network
from tests.lab.guest import QEMU
from tests.lab.kernel import LINUX, Kernel
from tests.lab.namespace import Namespace
from tests.lab.peers import met
from tests.lab.prerequisites import tool
from tests.lab.transfer import AMOUNT, Source, connect_here, listen, result, send, take

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300 + 4 * AMOUNT)]

# Numbers of features' bits.
OFFLOADS = {"CSUM": 0, "GUEST_CSUM": 1, "GUEST_TSO4": 7, "HOST_TSO4": 11, "MRG_RXBUF": 15}
MTU = 1500


@pytest.fixture(scope="module")
def namespace(logs: Path) -> Iterator[Namespace]:
    with Namespace(logs) as it:
        yield it


def passed(namespace: Namespace) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes and frames that the kernel has had from the interface, and that it has sent there."""
    (line,) = namespace.run("grep tap0: /proc/net/dev").splitlines()
    counts = [int(count) for count in line.partition(":")[2].split()]
    return (counts[0], counts[1]), (counts[8], counts[9])


@pytest.mark.parametrize(("ring", "pairs"), [("split", 1), ("packed", 1), ("split", 2)])
@met(QEMU, LINUX, deed="`vhost-net`: TAP with offloads, {ring} rings, queue pairs: {pairs}")
def test_a_guest_and_the_kernel(
    kernel: Kernel, root: Path, work: Path, logs: Path, namespace: Namespace, ring: str, pairs: int
) -> None:
    """Each leaves checksums and the cutting of segments to the other, which need not do them."""
    source, name = Source.make(work), f"tap-{ring}-{pairs}"
    wanted = source.digest()
    here, sum_here = str(source.image), work / f"{name}.sum"
    options = ("--tap=tap0", f"--num-queues={pairs}")
    with network(work, logs, name, *options, prefix=namespace.prefix) as daemon:
        namespace.run("ip address add 10.0.8.1/24 dev tap0; ip link set tap0 up")
        devices = (*card(f"socket,id=net,path={daemon.socket}", 1, ring, pairs), *source.devices)
        with guest(kernel, root, logs / name, daemon, devices, cpus=pairs) as it:
            features = negotiated(it)
            assert set(OFFLOADS.values()) <= features, f"{features} of {OFFLOADS}"
            it.run("ip address add 10.0.8.2/24 dev eth0; ip link set eth0 up")
            namespace.run(f"{tool('busybox')} ping -c 5 -W 10 10.0.8.2")
            before = passed(namespace)
            listen(it, 5000, take("/tmp/sum"))
            connect_here(namespace, "10.0.8.2", 5000, send(source, here))
            assert result(it, "/tmp/sum") == wanted
            listen(it, 5001, send(source))
            connect_here(namespace, "10.0.8.2", 5001, take(str(sum_here)))
            assert sum_here.read_text().split()[0] == wanted
            for (octets, frames), (octets_before, frames_before) in zip(
                passed(namespace), before, strict=True
            ):
                octets -= octets_before
                frames -= frames_before
                assert octets > source.size
                # Acknowledgements count too, and most segments are larger all the same.
                assert octets / frames > 2 * MTU, f"{frames} frames have {octets} bytes"
