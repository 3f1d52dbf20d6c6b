# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Which message a descriptor belongs to, and that every descriptor is taken or closed."""

import pytest

from vhost.errors import RemoteProtocolError
from vhost.protocol import MemoryRegion, Rejected, Request, SetMemTable

from .wire import frame, is_open, one, raw, requester, responder, spare_fds

KICK = frame(12, raw(8, (0, 8, 1)))
CALL = frame(13, raw(8, (0, 8, 1)))
ERR = frame(14, raw(8, (0, 8, 1)))
ENABLE = frame(18, raw(8, (0, 4, 1), (4, 4, 1)))


def counts(*reads: tuple[bytes, int]) -> list[int]:
    """Feed reads with so many descriptors; the number that each message got, -1 for a rejected one."""
    found = []
    back = responder()
    for data, fds in reads:
        back.receive(data, spare_fds(fds))
        while (event := back.next_event()) is not None:
            found.append(event.fd_count if isinstance(event, Request) else -1)
    return found


def test_descriptors_belong_to_the_last_message_that_begins() -> None:
    assert counts((KICK, 1)) == [1]
    assert counts((ENABLE + KICK, 1)) == [0, 1]
    assert counts((ENABLE + KICK[:1], 1), (KICK[1:], 0)) == [0, 1]
    assert counts((ENABLE + KICK[:15], 1), (KICK[15:] + CALL, 1)) == [0, 1, 1]
    assert counts((KICK + CALL, 1)) == [-1, 1]


def test_descriptors_without_a_beginning_belong_to_the_message_in_progress() -> None:
    assert counts((KICK[:1], 0), (KICK[1:19], 1), (KICK[19:], 0)) == [1]
    assert counts((KICK[:13], 0), (KICK[13:], 1)) == [1]
    assert counts((KICK[:13], 1), (KICK[13:], 1)) == [-1]


def test_byte_by_byte() -> None:
    reads = [(bytes([byte]), 1 if at % 20 == 0 else 0) for at, byte in enumerate(KICK + CALL + ERR)]
    assert counts(*reads) == [1, 1, 1]


def test_taking() -> None:
    back, fds = responder(), spare_fds(2)
    event = one(back, frame(5, raw(8 + 64, (0, 4, 2))), fds)
    assert event.fd_count == 2
    assert event.take_fd() == fds[0]
    assert event.take_fds() == [fds[1]]
    assert event.fd_count == 0
    assert back.next_event() is None
    back.close()
    assert [is_open(fd) for fd in fds] == [True, True]
    spare = responder()
    spare.receive(b"", fds)
    assert not any(map(is_open, fds))


def test_what_nobody_takes_is_closed_with_the_next_event() -> None:
    back, fds = responder(), spare_fds(1)
    one(back, KICK, fds)
    assert is_open(fds[0])
    assert back.next_event() is None
    assert not is_open(fds[0])


@pytest.mark.parametrize("progress", [1, 12, 19, 20])
def test_close_closes(progress: int) -> None:
    back, fds = responder(), spare_fds(2)
    one(back, KICK + KICK[:progress], fds[:1])
    back.receive(b"\0", fds[1:])
    back.close()
    assert not any(map(is_open, fds))


@pytest.mark.parametrize(
    ("data", "fds"),
    [
        (frame(12, raw(8, (0, 8, 0x101))), 1),
        (KICK, 2),
        (frame(3), 1),
        (frame(99), 1),
        (frame(12, bytes(7)), 1),
        (frame(5, raw(40, (0, 4, 1))), 2),
        (frame(5, raw(40, (0, 4, 1))), 0),
        (frame(37, bytes(40)), 0),
        (frame(3), 253),
    ],
)
def test_rejected_messages_have_none(data: bytes, fds: int) -> None:
    back, riders = responder(), spare_fds(fds)
    event = one(back, data, riders)
    assert isinstance(event, Rejected)
    assert event.fd_count == 0
    assert not any(map(is_open, riders))
    assert isinstance(one(back, frame(3)), Request)


def test_no_more_are_kept_than_a_message_can_use() -> None:
    back, riders = responder(), spare_fds(300)
    for at, byte in enumerate(frame(5, bytes(8))[:-1]):
        back.receive(bytes([byte]), riders[at * 10 : at * 10 + 10])
    assert sum(map(is_open, riders)) == 32 + 300 - 190
    back.receive(b"\0", riders[190:])
    assert isinstance(back.next_event(), Rejected)
    assert not any(map(is_open, riders))


@pytest.mark.parametrize("garbage", [b"\xff" * 40, frame(3, version=3), frame(1, flags=4)])
def test_garbage_closes(garbage: bytes) -> None:
    back, riders = responder(), spare_fds(3)
    back.receive(garbage, riders[:2])
    with pytest.raises(RemoteProtocolError):
        back.next_event()
    back.receive(garbage, riders[2:])
    assert not any(map(is_open, riders))


def test_the_end_closes() -> None:
    back, riders = responder(), spare_fds(2)
    back.receive(KICK[:13], riders[:1])
    back.receive(b"")
    with pytest.raises(RemoteProtocolError):
        back.next_event()
    back.receive(KICK, riders[1:])
    assert not any(map(is_open, riders))


def test_wrong_answers_close() -> None:
    front, riders = requester(), spare_fds(1)
    front.receive(frame(1, bytes(8), flags=4), riders)
    with pytest.raises(RemoteProtocolError):
        front.next_event()
    assert not any(map(is_open, riders))


def test_a_descriptor_closed_by_somebody_else_is_no_error() -> None:
    back, riders = responder(), spare_fds(1)
    event = one(back, KICK, riders)
    responder().receive(b"", riders)
    event.drop()
    assert event.fd_count == 0


def test_sending_keeps_the_descriptors() -> None:
    riders = spare_fds(2)
    regions = tuple(MemoryRegion(at, 0x1000, at, 0) for at in (0, 0x1000))
    _, sent = requester().send(SetMemTable(regions), riders)
    assert sent == riders
    assert all(map(is_open, riders))
    responder().receive(b"", riders)
