# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Every row of the quirks table: what it tolerates or changes when on, and what happens when it is off."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

import vhost.protocol
from vhost.errors import ProtocolError
from vhost.protocol import (
    U64,
    AddMemReg,
    Connection,
    GetConfig,
    GetInflightFd,
    GetProtocolFeatures,
    GetQueueNum,
    GetSharedObject,
    MemoryRegion,
    Message,
    PackedBase,
    Payload,
    ProtocolFeature,
    Quirks,
    RegionRepeats,
    Rejected,
    Request,
    SetConfig,
    SetInflightFd,
    SetLogBase,
    SetMemTable,
    SetProtocolFeatures,
)
from vhost.protocol.quirks import table

from .wire import REPLY, SLOTS, frame, one, raw, requester, responder, spare_fds

XEN = SLOTS | ProtocolFeature.XEN_MMAP


def read(quirks: Quirks, code: int, payload: bytes, fds: int = 0, protocol: int = SLOTS) -> Message | None:
    """The message a responder sees; None if it rejects it."""
    end = responder(protocol=protocol, quirks=quirks)
    event = one(end, frame(code, payload), spare_fds(fds))
    end.close()
    assert isinstance(event, Request | Rejected)
    return event.message if isinstance(event, Request) else None


def answer(quirks: Quirks, question: Message, payload: bytes, fds: int = 0) -> tuple[Payload, int] | None:
    """The answer a requester sees and its code; None if it makes no sense."""
    end = requester(quirks=quirks)
    end.send(question, [0] * question.fd_range()[0])
    try:
        event = one(end, frame(question.request, payload, flags=REPLY), spare_fds(fds))
    except ProtocolError:
        return None
    end.close()
    return event.value, event.code


def written(quirks: Quirks, message: Message, protocol: int = SLOTS) -> bytes:
    end: Connection = requester(protocol=protocol, quirks=quirks)
    return end.send(message, [0] * message.fd_range()[0], need_reply=False)[0][12:]


def regions(count: int) -> tuple[MemoryRegion, ...]:
    return tuple(MemoryRegion(0, 0, 0, 0) for _ in range(count))


NO_ADVANCE = MemoryRegion(0, 0x1000, 0, 0, xen_flags=0x102, domid=1)
SHMEM, GPA = int(ProtocolFeature.SHMEM), int(ProtocolFeature.GPA_ADDRESSES)


def offered(quirks: Quirks, bits: int) -> int | None:
    found = answer(quirks, GetProtocolFeatures(), raw(8, (0, 8, bits)))
    return found[0].value if found and isinstance(found[0], U64) else None


def repeats(quirks: Quirks, steps: str) -> str:
    """Which steps are taken for repetitions, where two regions are remembered.

    :param steps: ``a``, ``b``, ``c``: it is added again; ``r``: ``a`` is removed; ``-``: a new table.
    """
    known, taken = RegionRepeats(quirks, 2), ""
    for step in steps:
        if step == "-":
            known.clear()
        elif step == "r":
            taken += step * known.removed(MemoryRegion(ord("a"), 1, 0, 0))
        else:
            taken += step * known.added(MemoryRegion(ord(step), 1, 0, 0))
    return taken


# What to look at, with the switch on and off: row, probe, result when on, result when off.
CASES: list[tuple[str, Callable[[Quirks], object], object, object]] = [
    ("inflight_20", lambda q: read(q, 32, bytes(20), 1), SetInflightFd(0, 0, 0, 0), None),
    (
        "inflight_20",
        lambda q: read(q, 32, bytes(24), 1),
        SetInflightFd(0, 0, 0, 0),
        SetInflightFd(0, 0, 0, 0),
    ),
    ("inflight_20", lambda q: read(q, 32, bytes(22), 1), None, None),
    ("inflight_20", lambda q: answer(q, GetInflightFd(0, 0, 0, 0), bytes(20), 1) is None, False, True),
    ("inflight_20", lambda q: len(written(q, GetInflightFd(0, 0, 0, 0))), 24, 24),
    ("full_mem_table", lambda q: read(q, 5, raw(264, (0, 4, 2)), 2), SetMemTable(regions(2)), None),
    ("full_mem_table", lambda q: read(q, 5, raw(264, (0, 4, 0))), SetMemTable(()), None),
    ("full_mem_table", lambda q: read(q, 5, raw(328, (0, 4, 2)), 2, XEN), SetMemTable(regions(2)), None),
    ("full_mem_table", lambda q: read(q, 5, raw(263, (0, 4, 2)), 2), None, None),
    ("full_mem_table", lambda q: read(q, 5, raw(72, (0, 4, 1)), 1), SetMemTable(regions(1)), None),
    ("full_mem_table", lambda q: read(q, 5, raw(8 + 5 * 32, (0, 4, 3)), 3), SetMemTable(regions(3)), None),
    (
        "full_mem_table",
        lambda q: read(q, 5, raw(8 + 2 * 40, (0, 4, 1)), 1, XEN),
        SetMemTable(regions(1)),
        None,
    ),
    ("full_mem_table", lambda q: read(q, 5, raw(8 + 32, (0, 4, 2)), 2), None, None),
    ("full_mem_table", lambda q: read(q, 5, raw(8 + 9 * 32, (0, 4, 1)), 1), None, None),
    ("full_mem_table", lambda q: read(q, 5, raw(8 + 10 * 32, (0, 4, 9)), 9), None, None),
    ("full_mem_table", lambda q: read(q, 5, raw(72 + 1, (0, 4, 1)), 1), None, None),
    ("full_mem_table", lambda q: read(q, 5, raw(8, (4, 4, 9))), SetMemTable(()), SetMemTable(())),
    ("full_mem_table", lambda q: len(written(q, SetMemTable(regions(2)))), 72, 72),
    ("many_regions", lambda q: read(q, 5, raw(8 + 32 * 32, (0, 4, 32)), 32), SetMemTable(regions(32)), None),
    ("many_regions", lambda q: read(q, 5, raw(8 + 33 * 32, (0, 4, 33)), 32), None, None),
    ("many_regions", lambda q: read(q, 5, raw(8, (0, 4, 0xFFFF_FFFF))), None, None),
    ("rem_mem_reg_fd", lambda q: read(q, 38, bytes(40), 1) is None, False, True),
    ("rem_mem_reg_fd", lambda q: read(q, 38, bytes(40), 2), None, None),
    ("repeated_regions", lambda q: repeats(q, "aarr"), "aarr", ""),
    ("repeated_regions", lambda q: repeats(q, "ararr"), "arar", ""),
    ("repeated_regions", lambda q: repeats(q, "abc"), "ab", ""),
    ("repeated_regions", lambda q: repeats(q, "abrac"), "abra", ""),
    ("repeated_regions", lambda q: repeats(q, "a-r"), "a", ""),
    ("log_base_reply", lambda q: answer(q, SetLogBase(1, 2), b"") is None, False, False),
    ("log_base_reply", lambda q: answer(q, SetLogBase(1, 2), bytes(8)) is None, False, True),
    ("config_error_header", lambda q: answer(q, GetConfig(0, 4), bytes(12)) is None, False, True),
    ("config_error_header", lambda q: answer(q, GetConfig(0, 4), b"") is None, False, False),
    ("shared_object_echo", lambda q: answer(q, GetSharedObject(bytes(16)), b"", 1) is None, False, False),
    ("shared_object_echo", lambda q: answer(q, GetSharedObject(bytes(16)), bytes(8), 1) is None, False, True),
    (
        "xen_no_advance_map_8",
        lambda q: read(q, 37, raw(48, (16, 8, 0x1000), (40, 4, 0xA), (44, 4, 1)), 1, XEN),
        AddMemReg(NO_ADVANCE),
        AddMemReg(NO_ADVANCE._replace(xen_flags=0xA)),
    ),
    (
        "write_xen_no_advance_map_8",
        lambda q: written(q, AddMemReg(NO_ADVANCE), XEN)[40:],
        raw(8, (0, 4, 0xA), (4, 4, 1)),
        raw(8, (0, 4, 0x102), (4, 4, 1)),
    ),
    (
        "shmem_bit_21",
        lambda q: written(q, SetProtocolFeatures(SHMEM | 1)),
        raw(8, (0, 8, GPA | 1)),
        raw(8, (0, 8, SHMEM | 1)),
    ),
    (
        "shmem_bit_21",
        lambda q: read(q, 16, raw(8, (0, 8, GPA))),
        SetProtocolFeatures(SHMEM),
        SetProtocolFeatures(GPA),
    ),
    ("shmem_bit_21", lambda q: offered(q, GPA | 8), SHMEM | 8, GPA | 8),
    (
        "set_config_flags",
        lambda q: read(q, 25, raw(12, (8, 4, 2))),
        SetConfig(0, 1, b""),
        SetConfig(0, 2, b""),
    ),
    (
        "set_config_flags",
        lambda q: read(q, 25, raw(12, (8, 4, 1))),
        SetConfig(0, 0, b""),
        SetConfig(0, 1, b""),
    ),
    ("set_config_flags", lambda q: read(q, 25, raw(12)), SetConfig(0, 0, b""), SetConfig(0, 0, b"")),
    (
        "packed_base_16",
        lambda q: PackedBase.of(0x8005, q),
        PackedBase(5, True, 5, True),
        PackedBase(5, True, 0, False),
    ),
    (
        "packed_base_16",
        lambda q: PackedBase.of(0x7_8005, q),
        PackedBase(5, True, 7, False),
        PackedBase(5, True, 7, False),
    ),
    ("queue_num_pairs", lambda q: answer(q, GetQueueNum(), raw(8, (0, 8, 3)))[0], U64(6), U64(3)),
]


@pytest.mark.parametrize(
    ("row", "probe", "on", "off"), CASES, ids=[f"{at}-{case[0]}" for at, case in enumerate(CASES)]
)
def test_row(row: str, probe: Callable[[Quirks], object], on: object, off: object) -> None:
    assert probe(replace(Quirks(), **{row: True})) == on
    assert probe(replace(Quirks(), **{row: False})) == off


def test_every_row_is_tested_complete_and_used() -> None:
    rows = table()
    assert (
        list(rows)
        == [entry.name for entry in fields(Quirks)]
        == list(dict.fromkeys(case[0] for case in CASES))
    )
    source = "".join(path.read_text() for path in Path(vhost.protocol.__file__).parent.rglob("*.py"))
    for name, row in rows.items():
        assert all(row)
        assert f"quirks.{name}" in source


def test_answers_may_have_codes() -> None:
    assert answer(Quirks(), GetConfig(0, 4), bytes(12))[1] == 1
    assert answer(Quirks(), SetLogBase(1, 2), b"")[1] == 0
    assert answer(Quirks(), GetSharedObject(bytes(16)), b"")[1] == 1


def test_the_limit_of_regions_can_be_raised() -> None:
    end = responder(max_regions=40)
    assert isinstance(one(end, frame(5, raw(8 + 40 * 32, (0, 4, 40))), spare_fds(40)), Request)
    end.close()
    assert len(requester(max_regions=9).send(SetMemTable(regions(9)), [0] * 9)[1]) == 9


@pytest.mark.parametrize("base", [0, 0x8005, 0x8005_8007, 0xFFFF_FFFF])
def test_packed_base(base: int) -> None:
    assert PackedBase.of(base, Quirks()).base() == base
