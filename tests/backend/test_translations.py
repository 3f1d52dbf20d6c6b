# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""I/O addresses at the socket: what is asked for, how often, and what becomes of answers that do not come."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.backend.echo import Echo
from tests.backend.peer import RAM_SIZE, TIMEOUT, USER, DriverRing, readable
from tests.backend.serving import Serving
from tests.backend.translated import (
    BOTH,
    IOVA,
    NOTHING,
    PAGE,
    QUIET,
    READ,
    WRITE,
    Translated,
)
from vhost.protocol import (
    IotlbMsg,
    IotlbType,
    ResetDevice,
    SetFeatures,
    SetMemTable,
    SetVringEnable,
    SetVringKick,
    VirtioFeature,
    VringFlag,
)

# Descriptors, avail and used ring of a ring of tests.backend.peer: a page each.
RING_PAGES = 3
# Of a request: what is read and what is written, a page each.
BUFFERS = 2


def events(server: Serving) -> list[str]:
    device = server.device
    assert isinstance(device, Echo)
    return device.events


def parts(ring: DriverRing) -> set[int]:
    """I/O addresses of a ring."""
    return {IOVA + ring.offset + part * PAGE for part in range(RING_PAGES)}


def running(peer: Translated, *, index: int = 0) -> DriverRing:
    """A ring that was served already."""
    if peer.channel is None:
        peer.begin()
    ring = peer.ring(index)
    peer.start(ring)
    ring.add(b"ab", 64)
    ring.kick_it()
    assert peer.answer(ring) == (b"ba", RING_PAGES + BUFFERS)
    return ring


def test_all_that_a_ring_and_a_chain_need_is_asked_for_at_once(server: Serving) -> None:
    with server.connect(Translated) as peer:
        peer.begin()
        ring = peer.ring()
        peer.start(ring)
        pages = peer.ask_for(RING_PAGES)
        assert {message.iova for message in pages} == parts(ring)
        for message in pages:
            peer.map(message.iova)
        for page in range(3):
            ring.add(b"abc", 64, page=page)
        ring.kick_it()
        # The front-end answers page by page, so it is asked for each, also for the chains behind the first.
        assert {(m.iova, m.perm) for m in peer.ask_for(3 * BUFFERS)} == {
            (IOVA + ring.data + page * PAGE + (0 if perm == READ else 0x10000), perm)
            for page in range(3)
            for perm in (READ, WRITE)
        }


def test_a_miss_is_sent_once_for_all_rings(server: Serving) -> None:
    """Both rings need the same pages for their buffers; each answer wakes those that have waited for it."""
    with server.connect(Translated) as peer:
        peer.begin()
        rings = [peer.ring(index) for index in range(2)]
        for ring in rings:
            peer.start(ring)
        peer.serve(len(rings) * RING_PAGES)
        for ring in rings:
            ring.data = rings[0].data
            ring.add(b"abc", 64)
            ring.kick_it()
        for message in peer.ask_for(BUFFERS):
            peer.map(message.iova)
        assert [peer.answer(ring)[0] for ring in rings] == [b"cba", b"cba"]


def test_a_full_channel_means_later(server: Serving) -> None:
    """Nothing waits for room, no ring breaks, and what was to be asked is asked once there is room."""
    with server.connect(Translated) as peer:
        peer.begin()
        sent = peer.fill()
        rings = [peer.ring(index) for index in range(2)]
        for ring in rings:
            peer.start(ring)
            ring.add(b"abc", 64)
            ring.kick_it()
        peer.drain(sent)
        peer.serve(len(rings) * RING_PAGES)
        assert [peer.answer(ring)[0] for ring in rings] == [b"cba", b"cba"]
        assert not server.lines.having("broken", "ERROR")


def test_a_channel_that_the_front_end_closes(server: Serving) -> None:
    """A ring that needs it waits for another one."""
    with server.connect(Translated) as peer:
        ring = running(peer)
        assert peer.channel is not None
        peer.channel.close()
        server.lines.wait("has closed the channel", level="INFO")
        peer.do(NOTHING)
        assert not server.lines.having("", "WARNING")
        ring.add(b"abc", 64)
        ring.kick_it()
        server.lines.wait("there is no channel", level="WARNING")
        peer.open_channel()
        assert peer.answer(ring) == (b"cba", RING_PAGES + BUFFERS)
        assert not server.lines.having("", "ERROR")


def test_what_comes_by_the_channel_does_not_accumulate(server: Serving) -> None:
    with server.connect(Translated) as peer:
        ring = running(peer)
        assert peer.channel is not None
        peer.channel.settimeout(5)
        for _ in range(64):
            peer.channel.sendall(bytes(1 << 16))  # more than a socket holds
        assert ring.request(b"abc") == b"cba"
        assert not server.lines.having("", "ERROR")


@pytest.mark.parametrize("perm", [0, READ, WRITE])
def test_a_translation_that_does_not_permit_what_was_asked(server: Serving, perm: int) -> None:
    with server.connect(Translated) as peer:
        ring = running(peer)
        place = IOVA + ring.data + PAGE
        need, iova = (READ, place) if perm == WRITE else (WRITE, place + 0x10000)
        ring.add(b"abc", 64, page=1)
        ring.kick_it()
        for message in peer.ask_for(BUFFERS):
            assert message.type == IotlbType.MISS
            peer.map(message.iova, perm if message.iova == iova else BOTH)
        assert readable(ring.err)
        server.lines.wait(f"ring 0 is broken.*{iova:#x} does not permit", level="ERROR")
        (failed,) = peer.ask_for(1)
        assert (failed.type, failed.iova, failed.perm) == (IotlbType.ACCESS_FAIL, iova, need)
        ring.kick_it()
        peer.ask_for(0)
        # It is the ring's end, nobody else's.
        other = running(peer, index=1)
        assert peer.base(other.index) == 1


def test_a_page_that_is_read_and_written_of_a_front_end_that_answers_just_what_was_asked(
    server: Serving,
) -> None:
    with server.connect(Translated) as peer:
        ring = running(peer)
        place = ring.data + 3 * PAGE
        ring.driver.add([(IOVA + place, 3)], [(IOVA + place + 16, 64)])
        ring.driver.publish()
        ring._answers[0] = place + 16
        peer.view[place : place + 3] = b"abc"
        ring.kick_it()
        for _ in range(2):
            (message,) = peer.ask_for(1)
            peer.map(message.iova, message.perm)
        assert peer.answer(ring) == (b"cba", 0)


def _reset(peer: Translated, ring: DriverRing) -> None:
    peer.do(ResetDevice())


def _negotiate(peer: Translated, ring: DriverRing) -> None:
    assert peer.base() == 1
    peer.map(IOVA)  # so that there is something
    peer.do(SetFeatures(peer.virtio_features & ~VirtioFeature.RING_INDIRECT_DESC))


def _stop(peer: Translated, ring: DriverRing) -> None:
    assert peer.base() == 1


@pytest.mark.parametrize("end", [_reset, _negotiate, _stop])
def test_no_translation_survives(server: Serving, end: Callable[[Translated, DriverRing], None]) -> None:
    with server.connect(Translated) as peer:
        ring = running(peer)
        end(peer, ring)
        peer.start(ring, 1)
        assert {message.iova for message in peer.ask_for(RING_PAGES)} == parts(ring)


def test_another_ring_that_runs_keeps_translations(server: Serving) -> None:
    with server.connect(Translated) as peer:
        ring, other = running(peer), running(peer, index=1)
        assert peer.base() == 1
        assert other.request(b"abc") == b"cba"
        peer.start(ring, 1)
        assert ring.request(b"abc") == b"cba"
        peer.ask_for(0)


def test_translations_survive_the_log(server: Serving) -> None:
    with server.connect(Translated) as peer:
        ring = running(peer)
        peer.do(SetFeatures(peer.virtio_features | VirtioFeature.LOG_ALL))
        assert ring.request(b"abc") == b"cba"
        peer.ask_for(0)


def test_an_answer_that_comes_after_the_stop_is_none_for_later(server: Serving) -> None:
    """The driver has gone since; nobody would take that translation back."""
    with server.connect(Translated) as peer:
        peer.begin()
        ring = peer.ring()
        peer.start(ring)
        late = peer.ask_for(RING_PAGES)
        assert peer.base() == 0
        for message in late:
            peer.map(message.iova)
        peer.start(ring)
        assert peer.ask_for(RING_PAGES) == late


def test_an_idle_ring_asks_for_nothing(server: Serving) -> None:
    with server.connect(Translated) as peer:
        ring = running(peer)
        before = list(events(server))
        for _ in range(3):
            peer.do(NOTHING)
            peer.ask_for(0)
            ring.add(b"abc", 64)
            ring.kick_it()
            assert peer.answer(ring) == (b"cba", RING_PAGES + BUFFERS)
        assert events(server) == before, "the ring was set up anew"


def test_an_invalidation_of_buffers_leaves_the_ring_alone(server: Serving) -> None:
    with server.connect(Translated) as peer:
        ring = running(peer)
        before = list(events(server))
        for _ in range(3):
            peer.do(IotlbMsg(IOVA + ring.data, 0x20000, 0, 0, IotlbType.INVALIDATE))
            ring.add(b"abc", 64)
            ring.kick_it()
            assert peer.answer(ring) == (b"cba", BUFFERS)
        assert events(server) == before


def test_what_was_there_before_the_invalidation_is_served_after_it(server: Serving) -> None:
    """Nobody kicks again for a chain that waits for its buffers when the ring's own pages go."""
    with server.connect(Translated) as peer:
        ring = running(peer)
        ring.add(b"abc", 64, page=2)
        ring.kick_it()
        peer.ask_for(BUFFERS)  # and nobody answers
        peer.do(NOTHING)
        assert peer.answer(ring)[0] == b"cba"


def test_a_ring_that_has_moved_is_set_up_anew(server: Serving) -> None:
    with server.connect(Translated) as peer:
        ring = running(peer)
        old, new = ring.offset, RAM_SIZE - RING_PAGES * PAGE
        peer.do(NOTHING)
        for part in range(RING_PAGES):
            here = peer.view[old + part * PAGE : old + (part + 1) * PAGE]
            peer.view[new + part * PAGE : new + (part + 1) * PAGE] = here
            peer.moved[IOVA + old + part * PAGE] = USER + new + part * PAGE
        # From here on the driver is at the new place.
        avail = new + PAGE
        peer.view[avail + 4 + 2 * 1 : avail + 4 + 2 * 2] = peer.view[avail + 4 : avail + 6]
        peer.view[avail + 2 : avail + 4] = (2).to_bytes(2, "little")
        used = new + 2 * PAGE
        before = bytes(peer.view[old : old + RING_PAGES * PAGE])
        ring.kick_it()
        peer.serve(RING_PAGES + BUFFERS)
        deadline = time.monotonic() + TIMEOUT
        while int.from_bytes(peer.view[used + 2 : used + 4], "little") != 2:
            assert time.monotonic() < deadline
        assert bytes(peer.view[old : old + RING_PAGES * PAGE]) == before
        assert events(server)[-2:] == ["stop 0", "start 0"]


def test_a_kick_asks_again_for_what_nobody_answered(server: Serving) -> None:
    """First the ring's own pages, then those of a buffer, then the ring's own once more. One question shows
    whether the front-end has an answer now; then the others follow."""
    with server.connect(Translated) as peer:
        peer.begin()
        ring = peer.ring()
        peer.start(ring)

        def again(count: int) -> None:
            """Ask for so many ranges, be left alone, and be kicked until an answer is late."""
            asked = peer.ask_for(count)
            for _ in range(3):
                deadline, probe = time.monotonic() + TIMEOUT, None
                while probe is None and time.monotonic() < deadline:
                    ring.kick_it()
                    probe = peer.asked(QUIET)
                assert probe in asked
                assert peer.asked(QUIET) is None
            assert probe is not None
            peer.map(probe.iova)
            for _ in range(count - 1):
                message = peer.asked()
                assert message in asked
                assert message is not None
                peer.map(message.iova)

        again(RING_PAGES)
        ring.add(b"abc", 64)
        ring.kick_it()
        again(BUFFERS)
        assert peer.answer(ring) == (b"cba", 0)
        peer.do(NOTHING)
        ring.add(b"abc", 64)
        ring.kick_it()
        pages = peer.ask_for(RING_PAGES)
        ring.kick_it()
        assert peer.answer(ring)[0] == b"cba"
        assert {message.iova for message in pages} == parts(ring)


def test_an_answer_for_memory_that_comes_later(server: Serving) -> None:
    with server.connect(Translated) as peer:
        peer.begin()
        ring = peer.ring()
        peer.do(SetMemTable(()))
        peer.start(ring)
        for message in peer.ask_for(RING_PAGES):
            page = message.iova & -PAGE
            peer.refused(IotlbMsg(page, PAGE, page - IOVA + USER, BOTH, IotlbType.UPDATE))
        peer.do(SetMemTable((peer.region(),)), [peer.ram])
        ring.add(b"abc", 64)
        ring.kick_it()
        assert peer.answer(ring)[0] == b"cba"


def test_an_invalidation_of_what_is_asked_for_loses_no_ring(server: Serving) -> None:
    with server.connect(Translated) as peer:
        ring = running(peer)
        ring.add(b"abc", 64, page=4)
        ring.kick_it()
        asked = peer.ask_for(BUFFERS)
        for message in asked:
            peer.do(IotlbMsg(message.iova & -PAGE, PAGE, 0, 0, IotlbType.INVALIDATE))
        # What the front-end had no answer for may have one now.
        assert peer.ask_for(BUFFERS) == asked
        peer.map(asked[0].iova)
        peer.do(IotlbMsg(asked[0].iova & -PAGE, PAGE, 0, 0, IotlbType.INVALIDATE))
        peer.map(asked[1].iova)
        assert peer.ask_for(1) == asked[:1]
        peer.map(asked[0].iova)
        assert peer.answer(ring) == (b"cba", 0)


@pytest.mark.parametrize("log", [None, 0x2000_0000], ids=["used ring", "elsewhere"])
def test_a_ring_with_io_addresses_is_logged_where_it_lies(server: Serving, log: int | None) -> None:
    """The log address is an I/O address, and need not be that of the used ring."""
    with server.connect(Translated) as peer:
        ring = running(peer)
        dirty = peer.dirty_log()
        peer.do(SetFeatures(peer.virtio_features | VirtioFeature.LOG_ALL))
        where = peer.addresses(ring)
        address = where.used if log is None else log
        peer.moved[address] = USER + ring.offset + 2 * PAGE
        for flags in (VringFlag.LOG, 0, VringFlag.LOG):
            peer.do(replace(where, flags=flags, log=address))
            dirty()
            for taken_back in (False, True):
                if taken_back:
                    peer.do(NOTHING)
                ring.add(b"abc", 64)
                ring.kick_it()
                assert peer.answer(ring)[0] == b"cba"
                assert dirty() == {ring.data + 0x10000} | ({ring.offset + 2 * PAGE} if flags else set())


def test_a_polled_ring_needs_no_kick(server: Serving) -> None:
    with server.connect(Translated) as peer:
        peer.begin()
        ring = peer.ring()
        peer.describe(ring)
        peer.do(SetVringKick(0, True))
        peer.do(SetVringEnable(0, 1))
        peer.serve(RING_PAGES)
        for _ in range(2):
            ring.add(b"abc", 64)
            assert peer.answer(ring)[0] == b"cba"
            peer.do(NOTHING)


def test_a_stopped_ring_waits_for_nothing(server: Serving) -> None:
    with server.connect(Translated) as peer:
        ring = running(peer)
        peer.do(NOTHING)
        ring.add(b"abc", 64)
        ring.kick_it()
        peer.ask_for(RING_PAGES)
        assert peer.base() == 1
        peer.start(ring, 1)
        assert peer.answer(ring) == (b"cba", RING_PAGES + BUFFERS)
