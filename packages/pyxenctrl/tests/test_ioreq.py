# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Ioreq pages, written here as the hypervisor does."""

import struct

import pytest

from pyxenctrl import PAGE_SIZE
from pyxenctrl.ioreq import BufferedIoreqPage, BufferedRequest, IoKind, IoreqPage, IoRequest

READY, IN_PROCESS, ANSWERED = 1, 2, 3
POINTER, READ, DESCENDING = 0x10, 0x20, 0x40


def put(
    page: bytearray, slot: int, *, state: int = READY, kind: int = 1, data: int = 0, size: int = 4
) -> None:
    """Put a request into a slot; `state` includes the bits that tell what it is."""
    struct.pack_into("<QQIIIHBB", page, slot * 32, 0xFE000010, data, 1, size, 40 + slot, 0, state, kind)


@pytest.fixture
def page() -> bytearray:
    return bytearray(PAGE_SIZE)


def test_a_write_is_taken_and_answered(page: bytearray) -> None:
    slots = IoreqPage(memoryview(page))
    put(page, 3, data=0x1234)
    assert slots.port(3) == 43
    assert slots.take(2) is None
    assert slots.take(3) == IoRequest(IoKind.MMIO, 0xFE000010, 0x1234, 4, 1, False, False, False)
    assert page[3 * 32 + 30] == IN_PROCESS
    assert slots.take(3) is None
    slots.answer(3, 0xFFFF)
    assert page[3 * 32 + 30] == ANSWERED
    assert page[3 * 32 + 8 : 3 * 32 + 16] == (0x1234).to_bytes(8, "little"), "it is a write"
    with pytest.raises(ValueError, match="no request in slot 3"):
        slots.answer(3)


@pytest.mark.parametrize(
    ("size", "expected"), [(1, 0x88), (2, 0x7788), (4, 0x55667788), (8, 0x1122334455667788)]
)
def test_a_read_is_answered_with_as_many_bytes(page: bytearray, size: int, expected: int) -> None:
    slots = IoreqPage(memoryview(page))
    put(page, 127, state=READY | READ | DESCENDING, kind=0, data=0xFFFFFFFFFFFFFFFF, size=size)
    request = slots.take(127)
    assert request is not None
    assert (request.kind, request.is_read, request.is_descending) == (IoKind.PORT, True, True)
    slots.answer(127, 0x1122334455667788)
    assert page[127 * 32 + 30] == ANSWERED | READ | DESCENDING
    assert int.from_bytes(page[127 * 32 + 8 : 127 * 32 + 16], "little") == expected


def test_a_pointer_is_left_alone(page: bytearray) -> None:
    slots = IoreqPage(memoryview(page))
    put(page, 0, state=READY | READ | POINTER, data=0x2000)
    request = slots.take(0)
    assert request is not None
    assert (request.is_pointer, request.data) == (True, 0x2000)
    slots.answer(0, 5)
    assert int.from_bytes(page[8:16], "little") == 0x2000


def test_only_what_is_ready_is_taken(page: bytearray) -> None:
    slots = IoreqPage(memoryview(page))
    for state in (0, IN_PROCESS, ANSWERED):
        put(page, 0, state=state)
        assert slots.take(0) is None
        assert page[30] == state
    put(page, 0, kind=99)
    with pytest.raises(ValueError, match="99"):
        slots.take(0)
    assert page[30] == READY


def test_slots_and_pages_that_there_are_not(page: bytearray) -> None:
    slots = IoreqPage(memoryview(page))
    for slot in (-1, 128):
        for call in (slots.take, slots.port, slots.answer):
            with pytest.raises(IndexError, match=f"slot {slot} of 128"):
                call(slot)
    with pytest.raises(ValueError, match="has 4096 bytes, not 8192"):
        IoreqPage(memoryview(bytearray(2 * PAGE_SIZE)))


def buffer(page: bytearray, at: int, kind: int, size_code: int, address: int, data: int) -> None:
    struct.pack_into("<II", page, 8 + at % 511 * 8, kind | size_code << 10 | address << 12, data)


def test_buffered_requests_leave_the_ring_in_order(page: bytearray) -> None:
    ring = BufferedIoreqPage(memoryview(page))
    assert [*ring.take()] == []
    first = 509  # so that a request of two slots goes over the end
    buffer(page, first, 1, 2, 0xA0010, 0x12345678)
    buffer(page, first + 1, 7, 3, 0, 0x9ABCDEF0)
    buffer(page, first + 2, 7, 3, 0, 0x12345678)
    buffer(page, first + 3, 0, 0, 0x60, 0x5A)
    struct.pack_into("<II", page, 0, first, first + 4)
    requests = ring.take()
    assert next(requests) == BufferedRequest(IoKind.MMIO, 0xA0010, 0x12345678, 4)
    assert struct.unpack_from("<II", page) == (first + 1, first + 4)
    assert [*requests] == [
        BufferedRequest(IoKind.TIME_OFFSET, 0, 0x123456789ABCDEF0, 8),
        BufferedRequest(IoKind.PORT, 0x60, 0x5A, 1),
    ]
    assert struct.unpack_from("<II", page) == (first + 4, first + 4)
