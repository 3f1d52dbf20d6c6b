# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A comparison as data: every round, and what is needed to repeat it."""

import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .figures import figures
from .rounds import Bench
from .workload import Workload

__all__ = ("machine", "report")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    return {
        "processor": name or platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def report(benches: Iterable[Bench]) -> dict[str, Any]:
    """All of it, as JSON has it; times in ns unless they say otherwise."""
    return {"machine": machine(), "benches": [_bench(bench) for bench in benches]}


def _bench(bench: Bench) -> dict[str, Any]:
    return {
        "workload": _workload(bench.workload),
        "seconds": bench.seconds,
        "server_cpu": bench.server_cpu,
        "driver_cpu": bench.driver_cpu,
        "peers": [asdict(peer) | {"failed": bench.failed.get(peer.name)} for peer in bench.peers],
        "rounds": [
            {
                "peer": result.peer,
                "depth": result.condition.depth,
                "mode": result.condition.mode,
                "round": result.number,
                "rate": result.rate,
                "server_ns": result.server_ns,
                **asdict(result.run),
            }
            for result in bench.results
        ],
        "figures": [
            {**asdict(figure), "condition": f"depth {figure.condition.depth}, {figure.condition.mode}"}
            for figure in figures(bench.results)
        ],
    }


def _workload(workload: Workload) -> dict[str, Any]:
    return asdict(workload) | {"access": workload.access.value, "text": str(workload)}
