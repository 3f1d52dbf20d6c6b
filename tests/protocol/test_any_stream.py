# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Any stream of bytes and descriptors ends in events or in RemoteProtocolError, and leaks nothing.

``VHOST_EXAMPLES`` sets how many streams are tried.
"""

import os
import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vhost.errors import LocalProtocolError, RemoteProtocolError
from vhost.protocol import (
    REGISTRY,
    Channel,
    Closed,
    Connection,
    Event,
    Rejected,
    Reply,
    ReplyRule,
    Request,
    Side,
)

from .test_golden import ANSWERS, REQUESTS
from .wire import EVERYTHING, frame, is_open, spare_fds

EXAMPLES = int(os.environ.get("VHOST_EXAMPLES", "300"))
anything = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

GOLDEN = {
    (channel, Side.RESPONDER): [
        frame(code, data, version=1) for at, code, _, data, _ in REQUESTS if at is channel
    ]
    for channel in Channel
} | {
    (channel, Side.REQUESTER): [
        frame(question.request, data, flags=4)
        for question, _, data, _ in ANSWERS
        if question.channel is channel
    ]
    for channel in Channel
}
QUESTIONS = {
    channel: [question for question, *_ in ANSWERS if question.channel is channel] for channel in Channel
}
ENDS = st.sampled_from([*GOLDEN])
WORDS = st.sampled_from(
    [0, 1, 4, 5, 8, 9, 12, 13, 0x100, 4096, 4097, 0x7FFF_FFFF, 0xFFFF_FFFF]
) | st.integers(0, 60)


SOUND = st.builds(
    frame,
    st.integers(0, 50),
    st.binary(max_size=80),
    st.sampled_from([0, 4, 8, 12]),
    st.sampled_from([1, 1, 1, 0]),
)
CHANGES = st.lists(st.tuples(st.integers(0, 200), WORDS), max_size=2)
READS = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0, 0, 0, 1, 2])), max_size=8)


def changed(pieces: list[bytes], changes: list[tuple[int, int]]) -> bytes:
    stream = bytearray(b"".join(pieces))
    for at, word in changes:
        if at + 4 <= len(stream):
            stream[at : at + 4] = word.to_bytes(4, sys.byteorder)
    return bytes(stream)


# For each end of each socket: golden messages, messages with a sound header, and noise; some bytes changed.
STREAMS = {
    end: st.builds(
        changed, st.lists(st.sampled_from(golden) | SOUND | st.binary(max_size=30), max_size=5), CHANGES
    )
    for end, golden in GOLDEN.items()
}
ASKED = {channel: st.lists(st.sampled_from(asked), max_size=3) for channel, asked in QUESTIONS.items()}


def drain(end: Connection) -> list[Event]:
    """All events there are, each one answered, or its answer refused, as a session might."""
    found: list[Event] = []
    while (event := end.next_event()) is not None:
        assert isinstance(event, Request | Rejected | Reply | Closed)
        assert str(event)
        if isinstance(event, Request | Rejected):
            output = None
            try:
                output = end.ack(event, len(found) % 2)
            except LocalProtocolError:
                assert event.rule is not ReplyRule.ACK
            if isinstance(event, Rejected):
                assert (output is not None) == (
                    event.need_reply or event.rule in (ReplyRule.VALUE, ReplyRule.STATUS)
                )
        found.append(event)
    return found


def reads(stream: bytes, cuts: list[tuple[int, int]]) -> list[tuple[bytes, int]]:
    """The stream cut into reads of so many bytes with so many descriptors; the last one brings the rest."""
    found, start = [], 0
    for size, count in [*cuts, (len(stream), 1)]:
        if start < len(stream):
            found.append((stream[start : start + size], count))
            start += size
    return found


@anything
@given(ends=ENDS, protocol=st.sampled_from([0, 0xFF_FFFF, 0xFD_FEFF, 0xFD_7FFF]), data=st.data())
def test_any_stream(ends: tuple[Channel, Side], protocol: int, data: st.DataObject) -> None:
    end = Connection(*ends)
    end.features = end.offered_features = EVERYTHING
    end.protocol_features = protocol
    if ends[1] is Side.REQUESTER:
        for question in data.draw(ASKED[ends[0]], "questions"):
            try:
                end.send(question, [0] * question.fd_range()[0])
            except LocalProtocolError:
                pass
    given_away: list[int] = []
    broken = False
    for chunk, count in reads(data.draw(STREAMS[ends], "stream"), data.draw(READS, "reads")):
        fds = spare_fds(count)
        given_away += fds
        end.receive(chunk, fds)
        try:
            drain(end)
        except RemoteProtocolError:
            broken = True
    end.receive(b"")
    try:
        closed = drain(end)
    except RemoteProtocolError:
        broken, closed = True, []
    assert broken or [type(event) for event in closed] == [Closed]
    end.close()
    assert broken or end.next_event() is None
    assert not any(map(is_open, given_away))


@anything
@given(data=st.data(), ends=ENDS)
def test_cuts_do_not_matter(ends: tuple[Channel, Side], data: st.DataObject) -> None:
    stream = data.draw(STREAMS[ends], "stream")
    cuts = data.draw(READS, "reads")
    stories: list[list[str]] = []
    for cut in (reads(stream, cuts), reads(stream, [])):
        end = Connection(*ends)
        end.features = end.offered_features = EVERYTHING
        end.protocol_features = 0xFD_FEFF
        if ends[1] is Side.REQUESTER:
            for question in QUESTIONS[ends[0]][:4]:
                if question.gate is None or not question.gate.closed(end.terms):
                    end.send(question, [0] * question.fd_range()[0])
        story: list[str] = []
        try:
            for chunk, _ in cut:
                end.receive(chunk)
                while (event := end.next_event()) is not None:
                    story.append(str(event))
        except RemoteProtocolError as error:
            story.append(str(error))
        stories.append(story)
    assert stories[0] == stories[1]


def test_every_payload_of_every_size() -> None:
    for channel in Channel:
        for code in range(max(REGISTRY[channel]) + 2):
            for size in {*range(90), *range(260, 340), 1056, 1072, 2056, 4096}:
                for fill in (b"\0", b"\1", b"\xff"):
                    end = Connection(channel, Side.RESPONDER)
                    end.features = end.offered_features = EVERYTHING
                    end.protocol_features = 0xFD_FEFF
                    end.receive(frame(code, fill * size))
                    assert isinstance(end.next_event(), Request | Rejected)
