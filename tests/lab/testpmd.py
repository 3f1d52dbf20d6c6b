# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""DPDK's testpmd, driven by its command line: virtio-user as a driver of our rings, without huge pages.

Debian's package and all it depends on lie in the cache; nothing is installed. DPDK's drivers are loaded one
by one: those of hardware are of no use.
"""

import os
import pty
import re
import select
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import archive
from tests.lab.peers import Peer, asked
from tests.lab.process import Process
from tests.lab.userland import LIBRARIES, Userland

__all__ = ("DPDK", "TestPmd", "dpdk")

SUITE = "bookworm"
PACKAGES = ("dpdk-dev", "librte-mempool-ring23", "librte-net-pcap23", "librte-net-virtio23")
DRIVERS = ("mempool_ring", "net_pcap", "net_virtio")
PROMPT = b"testpmd> "
COMMAND_SECONDS = 30


def dpdk() -> Userland:
    """DPDK of Debian 12 in the cache.

    :raises Missing: this machine's apt cannot provide it.
    """
    return Userland(archive.closure(PACKAGES, SUITE, without_development))


def dpdk_version() -> str:
    # As the start of testpmd tells.
    options = ("-v", "--no-huge", "-m", "64", "--no-pci", "--no-shconf", "--help")
    return asked(dpdk().command("usr/bin/dpdk-testpmd", *options), r"RTE Version: 'DPDK ([\d.]+)'")


DPDK = Peer("DPDK virtio-user", dpdk_version)


def without_development(root: Path) -> None:
    # The package of testpmd depends on all there is for writing other programs: a third of the folder.
    shutil.rmtree(root / "usr/include")
    shutil.rmtree(root / "usr/share")
    for library in (root / LIBRARIES).glob("*.a"):
        library.unlink()


class TestPmd:
    """A running testpmd. A context manager that kills it in the end.

    :param devices: virtual devices, as for ``--vdev``; each is a port.
    :param options: testpmd's own.
    """

    __test__ = False  # nothing for pytest

    def __init__(self, devices: Sequence[str], log: Path, *, options: Sequence[str] = ()) -> None:
        userland = dpdk()
        plugins = userland.root / LIBRARIES / "dpdk/pmds-23.0"
        cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        eal = [
            *(part for name in DRIVERS for part in ("-d", f"{plugins}/librte_{name}.so")),
            *("--no-huge", "-m", "256", "--no-shconf", "--no-pci", "--no-telemetry"),
            *("--lcores", f"0@({cpus}),1@({cpus})"),  # the scheduler may move both
            *(part for device in devices for part in ("--vdev", device)),
        ]
        mine = ["--interactive", "--total-num-mbufs=8192", "--no-lsc-interrupt", "--no-flush-rx", *options]
        self._terminal, far = pty.openpty()
        self._unread = b""
        try:
            argv = userland.command("usr/bin/dpdk-testpmd", *eal, "--", *mine)
            self.process = Process(argv, log, stdio=far)
        finally:
            os.close(far)
        try:
            self._until_prompt("starting")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, command: str) -> str:
        """Gives testpmd a command.

        :returns: what it prints.
        :raises AssertionError: it does not know the command, hangs or ends.
        """
        os.write(self._terminal, command.encode() + b"\n")
        output = self._until_prompt(f"running {command!r}")
        assert not re.search("Bad arguments|Command not found|Ambiguous", output), output
        return output

    def count(self, port: int, what: str) -> int:
        """A counter of a port: ``RX-packets``, ``TX-bytes`` and the like."""
        output = self.run(f"show port stats {port}")
        found = re.search(rf"{what}: +(\d+)", output)
        assert found, output
        return int(found[1])

    def wait(self, port: int, what: str, least: int) -> None:
        """Waits until a counter has come so far.

        :raises AssertionError: it does not.
        """
        deadline = time.monotonic() + COMMAND_SECONDS
        while (now := self.count(port, what)) < least:
            assert time.monotonic() < deadline, f"port {port}: {what} is {now}, not {least}"
            time.sleep(0.02)

    def finish(self) -> None:
        """Ends it in order.

        :raises AssertionError: it fails or hangs.
        """
        os.write(self._terminal, b"quit\n")
        deadline = time.monotonic() + COMMAND_SECONDS
        while self._receive(deadline, "quitting"):
            pass
        status = self.process.wait(10)
        assert status == 0, f"testpmd ended with status {status}:\n{self.process.tail()}"

    def close(self) -> None:
        """Kills it if it still runs."""
        self.process.kill()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def _until_prompt(self, doing: str) -> str:
        deadline = time.monotonic() + COMMAND_SECONDS
        while PROMPT not in self._unread:
            assert self._receive(deadline, doing), f"testpmd ended while {doing}:\n{self.process.tail()}"
        output, _, self._unread = self._unread.partition(PROMPT)
        return output.decode(errors="replace")

    def _receive(self, deadline: float, doing: str) -> bool:
        # Some of its output, which also goes to the log; or false: there is no more.
        left = max(0.0, deadline - time.monotonic())
        assert select.select([self._terminal], [], [], left)[0], (
            f"testpmd hangs, {doing}:\n{self.process.tail()}"
        )
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # EIO: nobody has the other end any more
            data = b""
        with open(self.process.log, "ab") as log:
            log.write(data)
        self._unread += data
        return bool(data)
