# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Open vSwitch with DPDK, without huge pages: a bridge in user space, with ports that speak vhost-user.

Debian's package and all it depends on lie in the cache; nothing is installed. The bridge has an interface of
the kernel too, so all of it runs in a network of its own.
"""

import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import archive
from tests.lab.namespace import Namespace
from tests.lab.peers import Peer, asked
from tests.lab.process import Process
from tests.lab.userland import LIBRARIES, Userland

__all__ = ("OPEN_VSWITCH", "Switch")

SUITE = "bookworm"
PACKAGES = ("openvswitch-switch-dpdk", "librte-mempool-ring23", "librte-net-virtio23")
DRIVERS = ("mempool_ring", "net_virtio")
PROGRAM = "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
START_SECONDS = 60


def openvswitch() -> Userland:
    """Open vSwitch of Debian 12 in the cache.

    :raises Missing: this machine's apt cannot provide it.
    """
    return Userland(archive.closure(PACKAGES, SUITE))


OPEN_VSWITCH = Peer(
    "Open vSwitch", lambda: asked(openvswitch().command(PROGRAM, "--version"), r"Open vSwitch\) ([\d.]+)")
)


class Switch:
    """A running Open vSwitch with one bridge. A context manager that kills it in the end.

    :param folder: an empty one with a short path, for its sockets and data.
    :param logs: folder for its logs.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        self._userland, self._stack = openvswitch(), ExitStack()
        self._database = f"unix:{folder / 'db.sock'}"
        names = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
        self._environment = dict.fromkeys(names, str(folder))
        try:
            self._start(folder, logs)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, folder: Path, logs: Path) -> None:
        data, root = folder / "conf.db", self._userland.root
        schema = root / "usr/share/openvswitch/vswitch.ovsschema"
        self.run("usr/bin/ovsdb-tool", "create", str(data), str(schema))
        remote = f"--remote=p{self._database}"
        self._process("usr/sbin/ovsdb-server", str(data), remote, f"--unixctl={folder}/db.ctl", logs=logs)
        deadline = time.monotonic() + START_SECONDS
        while not (folder / "db.sock").exists():
            assert time.monotonic() < deadline, "ovsdb-server does not listen"
            time.sleep(0.01)
        plugins = root / LIBRARIES / "dpdk/pmds-23.0"
        # With --legacy-mem it does not want its memory in huge pages after all.
        options = ("--no-huge", "--legacy-mem", "-m", "512", "--no-pci", "--no-telemetry", "--no-shconf")
        drivers = (f"-d {plugins}/librte_{name}.so.23" for name in DRIVERS)
        self.vsctl("--no-wait", "init")
        self.vsctl(
            *("--no-wait", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true"),
            f"other_config:dpdk-extra={' '.join((*options, *drivers))}",
            "other_config:pmd-maxsleep=500",  # microseconds; else a thread of it is always busy
        )
        network = self._stack.enter_context(Namespace(logs))
        self.process = self._process(
            PROGRAM, self._database, f"--unixctl={folder}/switch.ctl", logs=logs, prefix=network.prefix
        )
        self.vsctl("add-br", "bridge", "--", "set", "bridge", "bridge", "datapath_type=netdev")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, program: str, *arguments: str) -> str:
        """Runs one of its programs.

        :returns: its standard output, without the last newline.
        :raises AssertionError: its status is not 0, or it hangs.
        """
        done = subprocess.run(
            self._userland.command(program, *arguments),
            env={**os.environ, **self._environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * START_SECONDS,
        )
        assert done.returncode == 0, f"{program} {arguments}: status {done.returncode}: {done.stderr}"
        return done.stdout.removesuffix("\n")

    def vsctl(self, *arguments: str) -> str:
        """What ovs-vsctl does; what it changes the switch has made so when it returns."""
        options = f"--db={self._database}", f"--timeout={START_SECONDS}"
        return self.run("usr/bin/ovs-vsctl", *options, *arguments)

    def client(self, name: str, path: Path) -> None:
        """A port that is a back-end: it connects to the front-end that listens at ``path``."""
        self._port(name, "dpdkvhostuserclient", f"vhost-server-path={path}")

    def server(self, name: str, path: Path, *, packed: bool) -> None:
        """A port that is a front-end: it listens at ``path``, and waits for a back-end to connect."""
        device = f"net_virtio_user_{name},path={path},server=1,queues=1,packed_vq={int(packed)}"
        self._port(name, "dpdk", f"dpdk-devargs={device}")

    def _port(self, name: str, kind: str, option: str) -> None:
        port = ("add-port", "bridge", name, "--", "set", "Interface", name)
        self.vsctl(*port, f"type={kind}", f"options:{option}")
        error = self.vsctl("get", "Interface", name, "error")
        assert error == "[]", f"{error}\n{self.process.tail(50)}"

    def _process(self, program: str, *arguments: str, logs: Path, prefix: tuple[str, ...] = ()) -> Process:
        argv = (*prefix, *self._userland.command(program, *arguments))
        log = logs / f"{Path(program).name}.log"
        return self._stack.enter_context(Process(argv, log, environment=self._environment))
