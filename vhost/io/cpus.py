# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Lists of processors in the notation of the kernel: ``0,4-7``."""

import os

__all__ = ("parse_cpus", "node_cpus")


def parse_cpus(text: str) -> list[int]:
    """The processors of a list, in its order.

    :raises ValueError: not a list.
    """
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        cpus += range(int(first), int(last if dash else first) + 1)
    return cpus


def node_cpus(node: int) -> set[int]:
    """The processors of a NUMA node that this process may run on; none: no such node."""
    try:
        with open(f"/sys/devices/system/node/node{node}/cpulist") as file:
            return set(parse_cpus(file.read())) & os.sched_getaffinity(0)
    except OSError:
        return set()
