# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Our frontend drives passt, a backend of other authors: an address by DHCP, and TCP to this machine."""

import random
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.lab.backends import PASST
from tests.lab.host import Host, Tcp
from tests.lab.peers import met
from vhost.frontend import connect

DEED = "serves our front-end: ARP, DHCP, a TCP connection to this machine and back"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), met(PASST.peer, deed=DEED)]

ADDRESS, GATEWAY = IPv4Address("10.0.2.15"), IPv4Address("10.0.2.2")
MAC = bytes.fromhex("525400000001")
SIZE = 200_000
NETWORK = ("-4", "-a", str(ADDRESS), "-n", "24", "-g", str(GATEWAY), "-D", "none", "-m", "1500")


@pytest.fixture(params=[1, 8], ids=["one region", "8 regions"])
def host(work: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    path = work / "passt.sock"
    options = ("--vhost-user", "--foreground", "--one-off", *NETWORK, "--socket", path)
    with (
        PASST.listening(*options, socket=path, log=tmp_path / "passt.log") as daemon,
        connect(path, queues=2, regions=request.param) as frontend,
    ):
        yield Host(frontend, MAC)
        frontend.close()
        assert daemon.wait(20) == 0, daemon.tail()


def echo(listener: socket.socket, size: int) -> None:
    """Returns so many bytes to the first client, behind all of them, and hangs up."""
    with listener.accept()[0] as client:
        client.sendall(client.recv(size, socket.MSG_WAITALL))


def test_a_host_gets_an_address_and_talks_to_this_machine(host: Host) -> None:
    options = host.lease()
    assert (host.address, options[1], options[3]) == (ADDRESS.packed, b"\xff\xff\xff\0", GATEWAY.packed)
    mac, data = host.resolve(GATEWAY), random.Random(1).randbytes(SIZE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=echo, args=(listener, SIZE), daemon=True)
        server.start()
        connection = Tcp(host, mac, GATEWAY, listener.getsockname()[1])
        connection.send(data)
        assert connection.receive(SIZE) == data
        connection.finish()
        server.join()
