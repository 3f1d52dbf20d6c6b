# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The worker threads of a daemon: how they wait, how many there are, and where they run."""

import os
import time
from pathlib import Path

import pytest

from vhost import connect
from vhost.frontend import Blk, Rng

from .programs import daemon, run

BLK, RNG = "vhost.daemon.blk", "vhost.daemon.rng"
SECTOR = bytes(range(256)) * 2

pytestmark = pytest.mark.usefixtures("unix_build")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def places(pid: int) -> list[str]:
    """Where each thread may run, in the notation of the kernel."""
    lines = [
        line
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
    ]
    return sorted(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:"))


def test_polling_ends_when_nothing_comes(tmp_path: Path) -> None:
    with daemon(tmp_path, RNG, "-s", f"{tmp_path}/s", "--poll-us=1000", "-q") as running:
        with connect(f"{tmp_path}/s") as frontend:
            assert len(Rng(frontend).read(1000)) == 1000
            before = cpu_seconds(running.process.pid)
            time.sleep(1)
            assert cpu_seconds(running.process.pid) - before < 0.2
            assert len(Rng(frontend).read(1000)) == 1000
        assert running.end() == 0


def test_polling_for_ever(tmp_path: Path) -> None:
    with daemon(tmp_path, RNG, "-s", f"{tmp_path}/s", "--poll-always", "-q") as running:
        with connect(f"{tmp_path}/s") as frontend:
            assert len(Rng(frontend).read(1000)) == 1000
            before = cpu_seconds(running.process.pid)
            deadline = time.monotonic() + 60
            while cpu_seconds(running.process.pid) - before < 0.2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert len(Rng(frontend).read(1000)) == 1000
        assert running.end() == 0


@pytest.mark.parametrize(("workers", "threads"), [(1, 2), (2, 3), (9, 5)])
def test_queues_share_workers(tmp_path: Path, workers: int, threads: int) -> None:
    cpu = min(os.sched_getaffinity(0))
    options = "-s", f"{tmp_path}/s", "--memory=1M", "--num-queues=4", f"--workers={workers}", f"--cpus={cpu}"
    with daemon(tmp_path, BLK, *options, "-q") as running:
        everywhere = places(running.process.pid)
        assert len(everywhere) == 1
        with connect(f"{tmp_path}/s", queues=4) as frontend:
            for queue in range(4):
                Blk(frontend, queue=queue).write(queue * 512, SECTOR)
            assert Blk(frontend).read(0, 4 * 512) == 4 * SECTOR
            assert places(running.process.pid) == sorted([*everywhere, *[str(cpu)] * (threads - 1)])
        assert running.end() == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--cpus=4096", "processors [4096] are not there, or not for this process"),
        ("--numa-node=1000", "NUMA node 1000 is not there, or has no processor for this process"),
    ],
)
def test_processors_that_are_not_there(tmp_path: Path, option: str, message: str) -> None:
    done = run(RNG, f"--socket-path={tmp_path}/s", option)
    assert (done.returncode, done.stderr) == (1, f"vhost-rng: error: {message}\n")
