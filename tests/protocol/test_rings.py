# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Ring states: the table, and the diagram in the documentation."""

import subprocess
import sys
from pathlib import Path

import pytest

from vhost.protocol.rings import TRANSITIONS, RingEvent, RingState, diagram, next_state, suspended

E = RingEvent
SD, SE, UD, UE = (RingState(started, enabled) for started in (False, True) for enabled in (False, True))

# event: what stopped+disabled, stopped+enabled, started+disabled, started+enabled become
TABLE = {
    E.KICK_SET: (UD, UE, UD, UE),
    E.VRING_KICK: (UD, UE, UD, UE),
    E.GET_BASE: (SD, SE, SD, SE),
    E.SET_ANEW: (SD, SE, SD, SE),
    E.ENABLE: (SE, SE, UE, UE),
    E.DISABLE: (SD, SD, UD, UD),
    E.FEATURES_WITHOUT_PROTOCOL: (SE, SE, UE, UE),
    E.RESET_OWNER: (SD, SD, UD, UD),
    E.RESET_DEVICE: (SD, SD, SD, SD),
}


@pytest.mark.parametrize("event", RingEvent)
def test_transitions(event: RingEvent) -> None:
    assert tuple(next_state(state, event) for state in (SD, SE, UD, UE)) == TABLE[event]


def test_every_pair_is_there() -> None:
    assert len(TRANSITIONS) == 4 * len(RingEvent)
    assert RingState() == SD


def test_suspended() -> None:
    assert suspended([SD, SE])
    assert suspended([])
    assert not suspended([SD, UD])


def test_the_document_holds_the_diagram() -> None:
    command = [sys.executable, "-m", "vhost.protocol.rings"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert printed == diagram()
    document = Path(__file__).parents[2] / "docs" / "ring-states.md"
    if not document.exists():
        pytest.skip("the documentation is not part of this installation")
    assert f"```mermaid\n{printed}```\n" in document.read_text()
