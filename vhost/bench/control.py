# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What messages of the control plane cost: from connecting to a started ring, a question, a region added."""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from vhost._core import lib
from vhost.errors import VhostError
from vhost.frontend.ram import GuestRam
from vhost.protocol import MemoryRegion, ProtocolFeature, VirtioFeature
from vhost.protocol import frontend_messages as fe

from .connection import NOT_YET
from .script import Script, Step

__all__ = ("OPERATIONS", "NotOffered", "Operation", "timed")

_REGIONS: Final = 8
_MANY: Final = 508  # regions that are there already
_REGION: Final = 1 << 16
_RING: Final = 128  # entries
_FEATURES: Final = int(
    VirtioFeature.VERSION_1 | VirtioFeature.RING_EVENT_IDX | VirtioFeature.PROTOCOL_FEATURES
)
_PROTOCOL: Final = int(
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
_ACK: Final = int(ProtocolFeature.REPLY_ACK)
_SLOTS: Final = int(ProtocolFeature.CONFIGURE_MEM_SLOTS)
_TIMEOUT: Final = 5  # seconds for an answer
_REST: Final = 0.001  # seconds in which a backend tidies up after a connection
_LEAST: Final = 3  # operations, however short the time


class NotOffered(VhostError):
    """A backend lacks the protocol feature that an operation is about."""


#: Does operations on the backend behind a path; ticks of each.
Operation = Callable[[str], Iterator[int]]


@dataclass(frozen=True, slots=True)
class _Offer:
    """What a backend offered and we accept."""

    features: int
    protocol: int

    @property
    def ack(self) -> str:
        """How a message is answered that need not be."""
        return "ack" if self.protocol & _ACK else ""

    def steps(self) -> list[Step]:
        """The messages that a session begins with."""
        mq = self.protocol & ProtocolFeature.MQ
        return [
            (fe.SetOwner(), (), ""),
            (fe.GetFeatures(), (), "word"),
            (fe.GetProtocolFeatures(), (), "word"),
            (fe.SetProtocolFeatures(self.protocol), (), ""),
            *([(fe.GetQueueNum(), (), "word")] if mq else []),
            (fe.SetFeatures(self.features), (), self.ack),
        ]


def _offer(path: str) -> _Offer:
    with _connected(path) as sock:
        word = Script([(fe.GetFeatures(), (), "word")])
        word.play(sock)
        if not word.value & VirtioFeature.PROTOCOL_FEATURES:
            raise NotOffered("it does not offer PROTOCOL_FEATURES")
        protocol = Script([(fe.GetProtocolFeatures(), (), "word")])
        protocol.play(sock)
        return _Offer(word.value & _FEATURES, protocol.value & _PROTOCOL)


def _connect(path: str) -> tuple[socket.socket, int]:
    """A connection, and when it was begun."""
    deadline = time.monotonic() + _TIMEOUT
    while True:
        sock = socket.socket(socket.AF_UNIX)
        # Of the system call, so that no poll comes before each of them.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _TIMEOUT, 0))
        begin = lib.vh_bench_ticks()
        try:
            sock.connect(path)
            return sock, begin
        except OSError as error:
            sock.close()
            if error.errno not in NOT_YET or time.monotonic() > deadline:
                raise
        time.sleep(_REST)


@contextmanager
def _connected(path: str) -> Iterator[socket.socket]:
    sock, _ = _connect(path)
    with sock:
        yield sock


def _regions(ram: GuestRam) -> list[MemoryRegion]:
    return [MemoryRegion(gpa, ram.region_size, ram.user_address(gpa), at) for gpa, at in ram.regions()]


@contextmanager
def _ram(regions: int) -> Iterator[GuestRam]:
    ram = GuestRam(regions * _REGION, regions)
    try:
        yield ram
    finally:
        ram.close()


def _handshake(path: str) -> Iterator[int]:
    """Connect, negotiate, give 8 regions, start a ring."""
    offer = _offer(path)
    with ExitStack() as stack:
        ram = stack.enter_context(_ram(_REGIONS))
        kick, call = os.eventfd(0), os.eventfd(0)
        stack.callback(os.close, kick)
        stack.callback(os.close, call)
        ring = ram.alloc(16 * _RING + 4096 + 8 * _RING + 8, 4096, region=0)
        start = ram.user_address(ring.gpa)
        script = Script(
            [
                *offer.steps(),
                (fe.SetMemTable(tuple(_regions(ram))), [ram.fileno()] * _REGIONS, offer.ack),
                (fe.SetVringNum(0, _RING), (), ""),
                (fe.SetVringBase(0, 0), (), ""),
                (fe.SetVringAddr(0, 0, start, start + 16 * _RING + 4096, start + 16 * _RING), (), ""),
                (fe.SetVringCall(0), [call], ""),
                (fe.SetVringKick(0), [kick], ""),
                (fe.SetVringEnable(0, 1), (), offer.ack),
            ]
        )
        end = Script([(fe.GetVringBase(0), (), "word")])
        while True:
            time.sleep(_REST)
            sock, begin = _connect(path)
            with sock:
                script.play(sock)
                ticks = lib.vh_bench_ticks() - begin
                end.play(sock)
            yield ticks


def _features(path: str) -> Iterator[int]:
    """A question and its answer."""
    offer = _offer(path)
    with _connected(path) as sock:
        Script(offer.steps()).play(sock)
        script = Script([(fe.GetFeatures(), (), "word")])
        script.play(sock)
        first = script.value
        while True:
            ticks = script.play(sock)
            if script.value != first:
                raise VhostError(f"it answered {first:#x} to GET_FEATURES, and {script.value:#x} later")
            yield ticks


def _add_region(path: str) -> Iterator[int]:
    """A region more, where there are 508; it is removed again each time."""
    offer = _offer(path)
    if not (offer.protocol & _SLOTS and offer.ack):
        raise NotOffered("it does not offer CONFIGURE_MEM_SLOTS and REPLY_ACK")
    with _connected(path) as sock, _ram(_MANY + 1) as ram:
        slots = Script([(fe.GetMaxMemSlots(), (), "word")])
        Script(offer.steps()).play(sock)
        slots.play(sock)
        if slots.value <= _MANY:
            raise NotOffered(f"it has room for {slots.value} regions, not for {_MANY + 1}")
        *there, last = _regions(ram)
        Script([(fe.AddMemReg(region), [ram.fileno()], "ack") for region in there]).play(sock)
        add = Script([(fe.AddMemReg(last), [ram.fileno()], "ack")])
        remove = Script([(fe.RemMemReg(last), (), "ack")])
        while True:
            yield add.play(sock)
            remove.play(sock)


OPERATIONS: Final[dict[str, Operation]] = {
    "handshake": _handshake,
    "GET_FEATURES": _features,
    "ADD_MEM_REG": _add_region,
}


def timed(operation: Operation, path: str, seconds: float, warmup: float) -> tuple[list[int], int]:
    """Repeat an operation; the ticks of each after the warmup, and how many there were in all.

    :raises VhostError, OSError: it failed.
    """
    turns = operation(path)
    try:
        total, ticks = 0, []
        start = time.monotonic()
        for one in turns:
            total += 1
            spent = time.monotonic() - start
            if spent >= warmup:
                ticks.append(one)
            if spent >= warmup + seconds and len(ticks) >= _LEAST:
                break
        return ticks, total
    finally:
        turns.close()  # type: ignore[attr-defined]
