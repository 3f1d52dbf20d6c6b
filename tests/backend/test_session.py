# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The session without sockets and threads: what runs when, and what failures of the device do."""

import os
from collections.abc import Iterator, Sequence

import pytest

from tests.backend.echo import Echo
from tests.backend.peer import FEATURES, GPA, PROTOCOL_FEATURES, RAM_SIZE, USER, footprint
from vhost.backend.ring import Ring
from vhost.backend.session import Session
from vhost.mem import Memory
from vhost.protocol import (
    U64,
    Channel,
    Connection,
    GetConfig,
    GetFeatures,
    GetProtocolFeatures,
    GetVringBase,
    MemoryRegion,
    Message,
    ProtocolFeature,
    RemMemReg,
    Reply,
    ResetDevice,
    ResetOwner,
    SetFeatures,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringKick,
    SetVringNum,
    Side,
)

REGION = MemoryRegion(GPA, RAM_SIZE, USER, 0)


class Runner:
    """Runs nothing, and remembers."""

    running: list[int]

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        ring.service()  # as every runner does
        self.running.append(ring.index)

    def stop(self) -> None:
        self.running.remove(self.ring.index)


class Rig:
    """A session and the other end of its connection, with nothing in between."""

    def __init__(self) -> None:
        Runner.running = []
        self.device = Echo()
        self.session = Session(self.device, Runner, Memory())
        self.connection = Connection(Channel.FRONTEND, Side.REQUESTER)
        self.ram = os.memfd_create("rig")
        os.ftruncate(self.ram, RAM_SIZE)

    def ask(self, message: Message, fds: Sequence[int] = (), *, need_reply: bool | None = None) -> Reply:
        data, riding = self.connection.send(message, fds, need_reply=need_reply)
        (output,) = self.session.feed(data, [os.dup(fd) for fd in riding])
        self.connection.receive(*output)
        reply = self.connection.next_event()
        assert isinstance(reply, Reply)
        return reply

    def tell(self, message: Message) -> None:
        data, riding = self.connection.send(message)
        assert not list(self.session.feed(data, riding))

    def eventfd(self) -> list[int]:
        self._fd = os.eventfd(0)
        return [self._fd]

    def kick(self, index: int = 0) -> Reply:
        reply = self.ask(SetVringKick(index), self.eventfd())
        os.close(self._fd)
        return reply


@pytest.fixture
def rig(unix_build: None) -> Iterator[Rig]:
    before = footprint()
    rig = Rig()
    rig.ask(GetFeatures())
    rig.ask(GetProtocolFeatures())
    rig.tell(SetProtocolFeatures(PROTOCOL_FEATURES))
    for message in (SetFeatures(FEATURES), SetOwner()):
        assert rig.ask(message).code == 0
    assert rig.ask(SetMemTable((REGION,)), [rig.ram]).code == 0
    for index in range(2):
        place = USER + index * 0x4000
        assert rig.ask(SetVringNum(index, 16)).code == 0
        assert rig.ask(SetVringAddr(index, 0, place, place + 0x2000, place + 0x1000)).code == 0
    yield rig
    rig.session.close()
    assert Runner.running == []
    rig.connection.close()
    os.close(rig.ram)
    assert footprint() == before


def test_a_ring_runs_while_it_is_started_and_enabled(rig: Rig) -> None:
    assert rig.kick().code == 0
    assert Runner.running == []
    for message, running in (
        (SetVringEnable(0, 1), [0]),
        (SetVringEnable(0, 0), []),
        (SetVringEnable(0, 1), [0]),
        (ResetOwner(), []),
        (SetVringEnable(0, 1), [0]),
        (GetVringBase(0), []),
        (SetVringEnable(0, 1), []),
    ):
        assert rig.ask(message).code == 0
        assert Runner.running == running, message
    assert rig.kick().code == 0
    assert Runner.running == [0]
    assert rig.ask(ResetDevice()).code == 0
    assert Runner.running == []


def test_changes_stop_and_start_the_runner(rig: Rig) -> None:
    rig.kick()
    rig.ask(SetVringEnable(0, 1))
    rig.kick(1)
    rig.ask(SetVringEnable(1, 1))
    for message, fds in (
        (SetVringCall(0, no_fd=True), []),
        (SetVringNum(0, 16), []),
        (SetMemTable((REGION,)), [rig.ram]),
    ):
        assert rig.ask(message, fds).code == 0
        assert sorted(Runner.running) == [0, 1]
    assert rig.ask(SetVringNum(0, 5)).code != 0
    assert sorted(Runner.running) == [0, 1]
    assert rig.ask(RemMemReg(REGION)).code == 0
    assert Runner.running == []  # both rest
    assert rig.ask(SetMemTable((REGION,)), [rig.ram]).code == 0
    assert sorted(Runner.running) == [0, 1]


def test_a_ring_that_is_set_up_anew_waits_for_its_start(rig: Rig) -> None:
    place = USER + 0x8000
    rig.ask(SetVringEnable(0, 1))
    for message in (
        SetVringNum(0, 8),
        SetVringAddr(0, 0, place, place + 0x2000, place + 0x1000),
        SetVringBase(0, 0),
    ):
        assert rig.kick().code == 0
        assert Runner.running == [0]
        assert rig.ask(message).code == 0
        assert Runner.running == []
        assert rig.ask(SetMemTable((REGION,)), [rig.ram]).code == 0
        assert Runner.running == []
    assert rig.kick().code == 0
    assert rig.ask(SetVringAddr(0, 0, place, place + 0x2000, place + 0x1000)).code == 0
    assert rig.ask(SetVringAddr(0, 1, place, place + 0x2000, place + 0x1000)).code == 0
    assert Runner.running == [0]  # nothing changes but the log


def test_no_ring_is_left_while_none_is_enabled(rig: Rig) -> None:
    events = rig.device.events
    for index in range(2):
        rig.kick(index)
        rig.ask(SetVringEnable(index, 1))
    del events[:]
    rig.ask(SetVringEnable(0, 0))
    assert (Runner.running, events) == ([1], ["stop 0"])
    rig.ask(SetVringEnable(1, 0))
    assert (Runner.running, events) == ([], ["stop 0", "stop 1"])
    assert rig.ask(SetMemTable((REGION,)), [rig.ram]).code == 0
    assert rig.ask(RemMemReg(REGION)).code == 0
    assert rig.ask(SetMemTable((REGION,)), [rig.ram]).code == 0
    assert events == ["stop 0", "stop 1"]
    rig.ask(SetVringEnable(1, 1))
    assert (Runner.running, events[2:]) == ([1], ["start 1"])


def test_a_table_that_is_refused_changes_nothing(rig: Rig) -> None:
    rig.kick()
    rig.ask(SetVringEnable(0, 1))
    bad = MemoryRegion(GPA, RAM_SIZE * 2, USER, 0)
    assert rig.ask(SetMemTable((bad,)), [rig.ram]).code != 0
    assert Runner.running == [0]
    assert [region.spec.size for region in rig.session.memory.table.regions] == [RAM_SIZE]


def test_memory_of_xen_guests_is_not_for_this_build(rig: Rig) -> None:
    offer = rig.ask(GetProtocolFeatures()).value
    assert isinstance(offer, U64)
    assert not offer.value & ProtocolFeature.XEN_MMAP
    assert (
        rig.ask(SetProtocolFeatures(PROTOCOL_FEATURES | ProtocolFeature.XEN_MMAP), need_reply=True).code != 0
    )
    rig.connection.protocol_features = PROTOCOL_FEATURES
    assert rig.ask(SetMemTable((REGION,)), [rig.ram]).code == 0  # regions are what they were


@pytest.mark.parametrize("hook", ["start", "negotiated", "config"])
def test_a_device_that_fails_is_an_answer(rig: Rig, hook: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("told to")

    setattr(rig.device, hook, fail)
    reply = {
        "start": rig.kick,
        "negotiated": lambda: rig.ask(SetFeatures(FEATURES)),
        "config": lambda: rig.ask(GetConfig(0, 4)),
    }[hook]()
    assert reply.code != 0
    assert "ZeroDivisionError: told to" in caplog.text
    caplog.clear()  # the records keep what the traceback saw
    delattr(rig.device, hook)
    assert rig.kick().code == 0


def test_a_device_that_fails_to_stop_is_stopped_all_the_same(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.kick()
    rig.device.stop = rig.device.reset = lambda *_: 1 // 0
    assert rig.ask(GetVringBase(0)).code == 0
    assert "the device failed to stop" in caplog.text
    rig.session.close()
    assert "the device failed to reset" in caplog.text
    caplog.clear()


def test_answers_come_one_by_one(rig: Rig) -> None:
    rig.kick()
    rig.ask(SetVringEnable(0, 1))
    first, _ = rig.connection.send(GetFeatures())
    second, _ = rig.connection.send(GetVringBase(0))
    outputs = rig.session.feed(first + second, [])
    next(outputs)
    assert Runner.running == [0]  # the second has not been looked at
    next(outputs)
    assert Runner.running == []


def test_the_end_is_noticed(rig: Rig) -> None:
    assert not rig.session.over
    assert not list(rig.session.feed(b"", []))
    assert rig.session.over
