# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Descriptors that a front-end makes unfit before or after it gives them: nobody waits, and none is kept."""

import fcntl
import os

from tests.backend.peer import (
    FEATURES,
    RAM_SIZE,
    USER,
    footprint,
    readable,
)
from tests.backend.serving import Serving
from tests.backend.translated import ALL, IOVA, TRANSLATED, Translated
from tests.hostile.raw import good_request
from vhost.protocol import (
    GetVringBase,
    IotlbMsg,
    IotlbType,
    ResetOwner,
    SetFeatures,
    SetLogFd,
    SetOwner,
    SetVringEnable,
    SetVringKick,
    VirtioFeature,
)

FULL = 2**64 - 2


def block(fd: int) -> None:
    """It blocks, and whoever shares it is not asked."""
    os.eventfd_write(fd, FULL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)


def test_a_full_err_descriptor_that_blocks(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        block(ring.err)
        ring.memory(0x1000, 4)[2:4] = b"\xff\x7f"
        ring.kick_it()
        server.lines.wait("ring 0 is broken", level="ERROR")
        peer.do(SetOwner())
    good_request(server)


def test_a_full_call_descriptor_that_blocks(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        block(ring.call)
        ring.add(b"abc", 64)
        ring.kick_it()
        while not ring.driver.poll():
            pass
        assert peer.base() == 1
    good_request(server)


def test_a_full_channel_that_blocks(server: Serving) -> None:
    with server.connect(Translated) as peer:
        peer.begin()
        sent = peer.fill(blocking=True)
        ring = peer.ring()
        peer.start(ring)
        ring.kick_it()
        peer.do(SetOwner())
        peer.drain(sent)
        peer.serve(3)
    good_request(server)


def test_log_descriptors_that_cannot_be_notified(server: Serving) -> None:
    with server.connect() as peer:
        peer.negotiate()
        peer.share()
        before = footprint()
        for path, flags in (("/tmp", os.O_PATH), ("/dev/null", os.O_WRONLY), (__file__, os.O_RDONLY)):
            fd = os.open(path, flags)
            peer.refused(SetLogFd(), [fd])
            os.close(fd)
        assert footprint() == before
    good_request(server)


def test_translations_end_with_their_feature(server: Serving) -> None:
    """A ring that runs while ACCESS_PLATFORM goes and comes does not keep what it knew before."""
    with server.connect(Translated) as peer:
        peer.begin()
        half = RAM_SIZE // 2
        for at in (0, half):
            peer.do(IotlbMsg(IOVA + at, half, USER + at, 3, IotlbType.UPDATE))
        ring = peer.ring()
        peer.start(ring)
        assert ring.request(b"ab") == b"ba"
        peer.do(SetFeatures(FEATURES))
        peer.do(SetFeatures(TRANSLATED))
        if readable(ring.call, 0):  # for the answer, which was there before
            os.eventfd_read(ring.call)
        ring.add(b"cd", 64)
        ring.kick_it()
        assert not readable(ring.call, 0.2)
        assert not ring.driver.poll()


def test_features_without_bit_30_enable_rings_each_time(server: Serving) -> None:
    features = FEATURES & ~VirtioFeature.PROTOCOL_FEATURES
    with server.connect() as peer:
        peer.negotiate(features)
        peer.share()
        ring = peer.ring()
        peer.describe(ring)
        peer.do(SetVringKick(0), [ring.kick])
        assert ring.request(b"abc") == b"cba"
        peer.do(ResetOwner())
        peer.do(SetOwner())
        peer.do(SetFeatures(features))
        assert ring.request(b"abc") == b"cba"


def test_a_ring_that_starts_again_is_served_once(server: Serving) -> None:
    """What was said for a ring in the same breath as it is stopped and started is not said twice."""
    looks = 0

    with server.connect(Translated) as peer:
        peer.begin()
        peer.do(ALL)
        ring = peer.ring()
        peer.describe(ring)
        peer.do(SetVringKick(0, no_fd=True))
        peer.do(SetVringEnable(0, 1))
        for _ in range(20):
            messages = (ALL, False), (GetVringBase(0), None), (SetVringKick(0, no_fd=True), True)
            data = b"".join(peer.connection.send(one, need_reply=ack)[0] for one, ack in messages)
            peer.sock.sendall(data)
            for _ in range(3):
                assert peer.reply().code == 0
        handle = server.device.handle

        def counted(queue: object) -> float | None:
            nonlocal looks
            looks += 1
            return handle(queue)  # type: ignore[arg-type]

        server.device.handle = counted  # type: ignore[method-assign]
        assert not readable(ring.call, 0.3)
        del server.device.handle
        assert looks < 1000, "a look each millisecond"
