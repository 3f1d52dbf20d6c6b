# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Compares backends under load: started, driven and checked in the same way, in alternating rounds."""

from .chart import chart
from .figures import Figure, figures
from .known import COMMANDS, DEFAULT
from .messages import ControlBench, Cost, costs
from .peer import Peer, PeerError, read_peers
from .report import machine, report
from .rounds import Bench, Condition, Round
from .table import control_markdown, control_plain, markdown, marks, plain
from .workload import DEVICES, Access, Workload

__all__ = (
    "DEVICES",
    "Workload",
    "Access",
    "Condition",
    "COMMANDS",
    "DEFAULT",
    "Peer",
    "PeerError",
    "read_peers",
    "Bench",
    "Round",
    "ControlBench",
    "Cost",
    "costs",
    "control_plain",
    "control_markdown",
    "Figure",
    "figures",
    "marks",
    "plain",
    "markdown",
    "chart",
    "machine",
    "report",
)
