# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The states of a ring and what moves it from one to another: vhost-user.rst, «Ring states».

A ring is stopped or started, and, apart from that, disabled or enabled. ``python -m vhost.protocol.rings``
prints the diagram in docs/ring-states.md.
"""

import enum
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

__all__ = ("RingState", "RingEvent", "TRANSITIONS", "next_state", "suspended", "diagram")


@dataclass(frozen=True, slots=True)
class RingState:
    """Both halves of a ring's state; what it is before anything has happened by default.

    :param started: the ring may be touched.
    :param enabled: what is in it may have effects; a started ring that is disabled is served without any.
    """

    started: bool = False
    enabled: bool = False

    def __str__(self) -> str:
        return f"{'started' if self.started else 'stopped'}_{'enabled' if self.enabled else 'disabled'}"


class RingEvent(enum.Enum):
    """What changes the state of a ring, by the message that brings it about."""

    KICK_SET = "SET_VRING_KICK"
    VRING_KICK = "VRING_KICK"
    GET_BASE = "GET_VRING_BASE"
    SET_ANEW = "NUM, ADDR, BASE or ENDIAN changed"
    ENABLE = "SET_VRING_ENABLE 1"
    DISABLE = "SET_VRING_ENABLE 0"
    FEATURES_WITHOUT_PROTOCOL = "SET_FEATURES without bit 30"
    RESET_OWNER = "RESET_OWNER"
    RESET_DEVICE = "RESET_DEVICE"


# What an event sets the two halves to; None leaves them. RESET_OWNER may be ignored or disable the rings; it
# disables them here. RESET_DEVICE brings back the first state. What is set up anew waits for its start:
# this is not in the specification, which leaves open when such settings take effect.
_EFFECTS: dict[RingEvent, tuple[bool | None, bool | None]] = {
    RingEvent.KICK_SET: (True, None),
    RingEvent.VRING_KICK: (True, None),
    RingEvent.GET_BASE: (False, None),
    RingEvent.SET_ANEW: (False, None),
    RingEvent.ENABLE: (None, True),
    RingEvent.DISABLE: (None, False),
    RingEvent.FEATURES_WITHOUT_PROTOCOL: (None, True),
    RingEvent.RESET_OWNER: (None, False),
    RingEvent.RESET_DEVICE: (False, False),
}

_STATES = tuple(RingState(started, enabled) for started, enabled in product((False, True), repeat=2))


def _after(state: RingState, event: RingEvent) -> RingState:
    started, enabled = _EFFECTS[event]
    return RingState(
        state.started if started is None else started, state.enabled if enabled is None else enabled
    )


#: The state after each event in each state; every pair is there.
TRANSITIONS = MappingProxyType(
    {(state, event): _after(state, event) for state in _STATES for event in RingEvent}
)


def next_state(state: RingState, event: RingEvent) -> RingState:
    """The state of a ring after *event*."""
    return TRANSITIONS[state, event]


def suspended(states: Iterable[RingState]) -> bool:
    """Whether a device whose rings are in *states* is suspended: it must leave guest memory alone.

    A suspended device notifies nobody and sends no requests, but it still answers.
    """
    return not any(state.started for state in states)


def diagram() -> str:
    """All transitions that change a state, as a mermaid diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {RingState()}"]
    for state, after in product(_STATES, repeat=2):
        causes = [event.value for event in RingEvent if state != after == TRANSITIONS[state, event]]
        if causes:
            lines.append(f"    {state} --> {after}: {', '.join(causes)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(diagram())
