# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A thousand devices in one process, nearly all of them idle: what they cost, and that each can be used."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.backend.peer import PROTOCOL_FEATURES, TIMEOUT, Peer
from vhost.mem import SELECTED
from vhost.protocol import GetFeatures, ProtocolFeature, VirtioFeature

DEVICES = 1000
#: KiB of memory that an idle device may cost: a thread has a stack, which is used a little.
KIB = {"asyncio": 16, "threads": 64}
#: Descriptors of an event loop.
LOOP = 3

SERVER = """
import asyncio, resource, sys, threading
import vhost
from vhost.backend import Stop, serve, serve_async
from vhost.backend.listen import Source

mode, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
stop = Stop()

class Echo(vhost.Device):
    name = "echo"
    def process(self, chain):
        chain.write(chain.read())

def end():
    sys.stdin.read()
    stop.set()

def loaded():
    # Everything that serving needs, and nothing served yet.
    from vhost.backend import aio, server
    print("loaded", flush=True)
    sys.stdin.readline()

paths = [f"{folder}/{index}" for index in range(count)]
loaded()
if mode == "threads":
    threads = [threading.Thread(target=serve, args=(Echo(), path), kwargs={"stop": stop}) for path in paths]
    for thread in threads:
        thread.start()
    end()
    for thread in threads:
        thread.join()
else:
    async def main():
        threading.Thread(target=end).start()
        await asyncio.gather(*(serve_async(Echo(), path, stop=stop) for path in paths))
    asyncio.run(main())
"""


class Server:
    """The process, and what the kernel says of it."""

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode, self.folder = mode, folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, mode, str(folder), str(DEVICES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "loaded\n"
        self.before = self.rss(), self.descriptors()
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def rss(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1])

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def listening(self) -> int:
        # A path is there before it can be connected to, which the flags tell (__SO_ACCEPTCON).
        ours = re.compile(rf"^\S+ \S+ \S+ 00010000 .* {re.escape(str(self.folder))}/\d+$", re.MULTILINE)
        return len(ours.findall(Path("/proc/net/unix").read_text()))

    def connect(self, index: int) -> Peer:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(TIMEOUT)
        sock.connect(str(self.folder / str(index)))
        return Peer(sock)

    def close(self) -> int:
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture(params=["asyncio", "threads"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    made = Server(request.param, tmp_path)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def wait_for(what: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.01)


def test_a_thousand_devices_are_cheap_and_every_one_works(server: Server) -> None:
    memory, descriptors = server.before
    wait_for(lambda: server.listening() == DEVICES)
    with server.connect(DEVICES - 1) as peer:
        assert peer.value(GetFeatures()) & VirtioFeature.VERSION_1
    wait_for(lambda: server.descriptors() <= descriptors + DEVICES + LOOP)
    idle, each = server.descriptors(), (server.rss() - memory) / DEVICES
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # which has stacks of its own
        assert each < KIB[server.mode], f"{each:.1f} KiB a device, {server.rss() / 1024:.0f} MiB in all"
    assert descriptors + DEVICES <= idle <= descriptors + DEVICES + LOOP

    with ExitStack() as stack:
        for index in range(0, DEVICES, 50):
            peer = stack.enter_context(server.connect(index))
            if SELECTED == "unix":
                request = b"%d" % index
                assert peer.ready().request(request) == request
            else:  # which has no use for memory that comes as a file
                peer.negotiate(protocol=PROTOCOL_FEATURES | ProtocolFeature.XEN_MMAP)
        busy = server.descriptors()
        # The connection, three of the ring, and what a worker may have of its own.
        assert busy <= idle + DEVICES // 50 * 8
    wait_for(lambda: server.descriptors() <= idle)

    assert server.close() == 0
    assert list(server.folder.iterdir()) == []
