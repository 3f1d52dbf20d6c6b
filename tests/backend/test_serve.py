# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Whole requests through the server: start, stop, go on, connect again."""

import os
import socket
import threading
import time

import pytest

from tests.backend.peer import FEATURES, GPA, PROTOCOL_FEATURES, RAM_SIZE, USER, Peer, footprint, readable
from tests.backend.serving import Serving
from vhost.protocol import (
    AddMemReg,
    ConfigReply,
    GetConfig,
    GetFeatures,
    GetInflightFd,
    GetMaxMemSlots,
    GetQueueNum,
    Inflight,
    ProtocolFeature,
    RemMemReg,
    ResetDevice,
    ResetOwner,
    SetBackendReqFd,
    SetConfig,
    SetFeatures,
    SetInflightFd,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringKick,
    SetVringNum,
    VirtioFeature,
)


@pytest.mark.parametrize(
    "ring_features",
    [VirtioFeature(0), VirtioFeature.RING_EVENT_IDX, VirtioFeature.RING_INDIRECT_DESC],
    ids=["plain", "event_idx", "indirect"],
)
def test_requests_are_served(server: Serving, ring_features: VirtioFeature) -> None:
    with server.connect() as peer:
        peer.negotiate(VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES | ring_features)
        peer.share()
        ring = peer.ring()
        peer.start(ring)
        assert ring.request(b"abc") == b"cba"
        assert [ring.request(bytes([n])) for n in range(40)] == [bytes([n]) for n in range(40)]
    assert not server.lines.having("", "WARNING")
    assert not server.lines.having("", "ERROR")


def test_a_packed_ring_that_is_new_may_begin_at_zero(server: Serving) -> None:
    """As user-mode Linux begins: both wrap counters of a new ring are 1."""
    with server.connect() as peer:
        peer.negotiate(FEATURES | VirtioFeature.RING_PACKED)
        peer.share()
        ring = peer.ring()
        peer.start(ring, 0)
        assert [ring.request(bytes([n, 0])) for n in range(8)] == [bytes([0, n]) for n in range(8)]
        assert peer.base() == 0  # a lap later that is where it is
        peer.do(SetVringKick(0), [ring.kick])
        assert ring.request(b"on") == b"no"
    assert not server.lines.having("", "ERROR")


def test_two_rings_side_by_side(server: Serving) -> None:
    with server.connect() as peer:
        first = peer.ready()
        second = peer.ring(1, size=256)
        peer.start(second)
        assert peer.value(GetQueueNum()) == 2
        assert (first.request(b"ab"), second.request(b"cd"), first.request(b"ef")) == (b"ba", b"dc", b"fe")


def test_the_next_connection_starts_anew(server: Serving) -> None:
    before = None
    for count in range(1, 4):
        with server.connect() as peer:
            assert peer.ready().request(b"xyz") == b"zyx"
        held = server.settled(count)
        assert before in (None, held)
        before = held
    assert server.device.events.count("reset") == 3
    assert server.device.events[-2:] == ["stop 0", "reset"]


def test_a_second_front_end_waits_for_the_first(server: Serving) -> None:
    with server.connect() as first, server.connect() as second:
        second.tell(GetFeatures())
        assert first.ready().request(b"1") == b"1"
        assert not readable(second.sock.fileno(), 0)
        first.sock.close()
        second.reply()


def test_a_stopped_ring_goes_on_where_it_was(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        for _ in range(3):
            ring.request(b"a")
        assert peer.base() == 3
        assert peer.base() == 3  # a stopped ring remembers
        ring.add(b"later", 64)
        peer.do(SetVringBase(0, 3))
        peer.do(SetVringKick(0), [ring.kick])
        assert ring.answer() == b"retal"  # started and looked at, with no kick
        assert peer.base() == 4
    assert server.device.events.count("start 0") == server.device.events.count("stop 0") == 2


def test_the_base_wraps(server: Serving) -> None:
    with server.connect() as peer:
        peer.negotiate()
        peer.share()
        ring = peer.ring()
        ring.memory(0x1000, 4)[2:4] = ring.memory(0x2000, 4)[2:4] = b"\xff\xff"
        peer.start(ring, 0xFFFF)
        head = ring.memory(0, 16)
        head[:] = (GPA + 0x80000).to_bytes(8, "little") + (4).to_bytes(4, "little") + bytes([2, 0, 0, 0])
        ring.memory(0x1000, 64)[4 + 2 * 15 : 6 + 2 * 15] = b"\0\0"
        ring.memory(0x1000, 4)[2:4] = b"\0\0"
        ring.kick_it()
        assert readable(ring.call)
        assert ring.memory(0x2000, 4)[2:4] == b"\0\0"
        assert peer.base() == 0


def test_a_disabled_ring_is_left_alone(server: Serving) -> None:
    with server.connect() as peer:
        peer.negotiate()
        peer.share()
        ring = peer.ring()
        peer.describe(ring)
        peer.do(SetVringKick(0), [ring.kick])
        ring.add(b"one", 64)
        ring.kick_it()
        assert peer.value(GetQueueNum()) == 2  # a round trip: it had its chance
        assert not ring.driver.poll()
        peer.do(SetVringEnable(0, 1))
        assert ring.answer() == b"eno"
        peer.do(SetVringEnable(0, 0))
        ring.add(b"two", 64)
        ring.kick_it()
        assert peer.base() == 1
        assert not ring.driver.poll()


def test_without_protocol_features_rings_need_no_enabling(server: Serving) -> None:
    with server.connect() as peer:
        assert peer.value(GetFeatures()) & VirtioFeature.PROTOCOL_FEATURES
        peer.tell(SetFeatures(VirtioFeature.VERSION_1))
        peer.tell(SetOwner())
        peer.tell(SetMemTable((peer.region(),)), [peer.ram])
        ring = peer.ring()
        for message, fds in (
            (SetVringNum(0, 16), []),
            (peer.addresses(ring), []),
            (SetVringBase(0, 0), []),
            (SetVringKick(0), [ring.kick]),
            (SetVringCall(0), [ring.call]),
        ):
            peer.tell(message, fds)
        assert ring.request(b"abc") == b"cba"


def test_a_ring_without_kick_descriptor_is_polled(server: Serving) -> None:
    with server.connect() as peer:
        peer.negotiate()
        peer.share()
        ring = peer.ring()
        peer.describe(ring)
        peer.do(SetVringKick(0, no_fd=True))
        peer.do(SetVringEnable(0, 1))
        for _ in range(3):
            ring.add(b"poll", 64)
            assert ring.answer() == b"llop"


def test_a_call_descriptor_that_comes_late_hears_of_what_was_used(server: Serving) -> None:
    with server.connect() as peer:
        peer.negotiate()
        peer.share()
        ring = peer.ring()
        peer.describe(ring)
        peer.do(SetVringCall(0, no_fd=True))
        ring.add(b"ab", 64)
        peer.do(SetVringKick(0), [ring.kick])
        peer.do(SetVringEnable(0, 1))
        peer.base()
        peer.do(SetVringKick(0), [ring.kick])
        peer.do(SetVringCall(0), [ring.call])
        assert ring.answer() == b"ba"


def test_a_front_end_may_sleep_on_its_call_descriptor(server: Serving) -> None:
    with server.connect() as peer:
        peer.negotiate()
        peer.share()
        ring = peer.ring()
        for fd in (ring.call, ring.err):
            os.set_blocking(fd, True)
        peer.start(ring)
        ring.add(b"ab", 64)
        ring.kick_it()
        assert os.eventfd_read(ring.call) >= 1
        assert ring.answer() == b"ba"
        assert os.get_blocking(ring.call)
        assert os.get_blocking(ring.err)


def test_a_ring_is_served_though_its_processor_has_gone(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhost.backend.worker.Polling.places", lambda *_: {4095})
    with server.connect() as peer:
        assert peer.ready().request(b"12") == b"21"
        assert peer.base() == 1
    if server.mode == "threads":
        server.lines.wait(r"worker 0 runs anywhere, not on \[4095\]: .*Invalid argument", level="WARNING")


def test_kick_and_call_are_replaced_while_the_ring_runs(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        assert ring.request(b"12") == b"21"
        for fd in (ring.kick, ring.call):
            os.close(fd)
        ring.kick, ring.call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
        peer.do(SetVringKick(0), [ring.kick])
        peer.do(SetVringCall(0), [ring.call])
        assert ring.request(b"34") == b"43"


def test_memory_comes_and_goes_while_the_ring_runs(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        far = peer.region(GPA + RAM_SIZE, 0x1000, USER + RAM_SIZE, RAM_SIZE - 0x1000)
        assert peer.value(GetMaxMemSlots()) >= 32
        peer.do(AddMemReg(far), [peer.ram])
        ring.driver.add([(GPA + RAM_SIZE, 4)], [(GPA + 0x90000, 4)])
        peer.view[RAM_SIZE - 0x1000 : RAM_SIZE - 0xFFC] = b"wxyz"
        ring.driver.publish()
        ring.kick_it()
        assert ring.answer() == b"zyxw"
        peer.do(RemMemReg(far))
        assert ring.request(b"on") == b"no"
        peer.do(SetMemTable((peer.region(),)), [peer.ram])
        assert ring.request(b"on") == b"no"


def test_memory_may_be_shared_once_for_each_pair_of_queues(server: Serving) -> None:
    """As QEMU 7.2 does; what one pair has removed, the next one removes too."""
    with server.connect() as peer:
        ring = peer.ready()
        held = footprint()
        far = peer.region(GPA + RAM_SIZE, 0x1000, USER + RAM_SIZE, RAM_SIZE - 0x1000)
        half = peer.region(GPA + RAM_SIZE, 0x800, USER + RAM_SIZE, RAM_SIZE - 0x1000)
        for region, before in ((far, None), (half, far), (far, half)):
            for _ in range(2):
                if before is not None:
                    peer.do(RemMemReg(before))
                peer.do(AddMemReg(region), [peer.ram])
                assert ring.request(b"on") == b"no"
        for _ in range(2):
            peer.do(RemMemReg(far))
        assert footprint() == held
        peer.tell(RemMemReg(far), need_reply=True)
        assert peer.reply().code != 0
        server.lines.wait("refused: REM_MEM_REG.*no such region", level="WARNING")
        assert len(server.lines.having("", "WARNING")) == 1


def test_only_inflight_regions_in_use_stay_mapped(server: Serving) -> None:
    def mapped() -> int:
        return sum("memfd:vhost-inflight" in line for line in footprint()[1])

    with server.connect() as peer:
        peer.negotiate(protocol=PROTOCOL_FEATURES | ProtocolFeature.INFLIGHT_SHMFD)
        peer.share()
        peer.ask(GetInflightFd(0, 0, 2, 16)).drop()
        ring = peer.ring()
        peer.start(ring)
        assert ring.request(b"abc") == b"cba"
        assert mapped() == 1
        for _ in range(5):
            reply = peer.ask(GetInflightFd(0, 0, 2, 16))
            assert isinstance(reply.value, Inflight)
            fd = reply.take_fd()
            peer.do(SetInflightFd(reply.value.mmap_size, 0, 2, 16), [fd])
            os.close(fd)
        assert mapped() == 2
        assert ring.request(b"abc") == b"cba"
        peer.base()
        peer.ask(GetInflightFd(0, 0, 2, 16)).drop()
        assert mapped() == 1


@pytest.mark.parametrize(("index", "size"), [(0, 256), (1, 16)], ids=["larger", "beyond"])
@pytest.mark.parametrize("kind", [VirtioFeature(0), VirtioFeature.RING_PACKED], ids=["split", "packed"])
def test_a_ring_that_an_inflight_region_was_not_made_for_is_served_without(
    server: Serving, kind: VirtioFeature, index: int, size: int
) -> None:
    """QEMU's virtio-mmio makes one for 128 entries, and its driver takes as many as there may be."""
    with server.connect() as peer:
        peer.negotiate(FEATURES | kind, PROTOCOL_FEATURES | ProtocolFeature.INFLIGHT_SHMFD)
        peer.share()
        region = peer.ask(GetInflightFd(0, 0, 1, 128)).take_fd()
        before = os.pread(region, 1 << 20, 0)
        ring = peer.ring(index, size)
        peer.start(ring)
        assert [ring.request(b"abc") for _ in range(size)] == [b"cba"] * size
        server.lines.wait(f"ring {index}: its {size} entries.* for 1 rings of 128", level="WARNING")
        assert os.pread(region, 1 << 20, 0) == before
        os.close(region)


def test_resets_stop_the_rings_and_keep_the_owner(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        peer.do(ResetOwner())
        ring.add(b"off", 64)
        ring.kick_it()
        peer.do(SetVringEnable(0, 1))
        assert ring.answer() == b"ffo"
        peer.do(ResetDevice())
        assert server.device.events[-3:] == ["stop 0", "reset", f"negotiated {int(FEATURES):#x}"]
        assert peer.base() == 1
        peer.do(SetVringKick(0), [ring.kick])
        ring.add(b"on", 64)
        assert peer.value(GetQueueNum()) == 2
        assert not ring.driver.poll()  # disabled, too
        peer.do(SetVringEnable(0, 1))
        assert ring.answer() == b"no"


def test_configuration_space(server: Serving) -> None:
    with server.connect() as peer:
        peer.negotiate()
        assert peer.ask(GetConfig(2, 3)).value == ConfigReply(2, 0, b"234")
        peer.do(SetConfig(2, 0, b"XY"))
        assert peer.ask(GetConfig(0, 8)).value == ConfigReply(0, 0, b"01XY4567")
        assert peer.ask(GetConfig(4, 8)).value == ConfigReply(4, 0, b"4567\0\0\0\0")
        peer.refused(SetConfig(4, 0, b"12345"))
        peer.refused(GetConfig(8, 1))
        assert peer.ask(GetConfig(0, 1)).code == 0


@pytest.mark.parametrize(
    ("request_", "line"),
    [(b"raise", "the device failed: ZeroDivisionError"), (b"refuse", "the device failed: DeviceError")],
)
def test_a_failing_device_breaks_its_ring_only(server: Serving, request_: bytes, line: str) -> None:
    with server.connect() as peer:
        ring = peer.ready()
        other = peer.ring(1)
        peer.start(other)
        ring.add(request_, 64)
        ring.kick_it()
        assert readable(ring.err)
        server.lines.wait(f"ring 0 is broken.*{line}", level="ERROR")
        assert other.request(b"ok") == b"ko"
        assert peer.base() == 1
        fresh = peer.ring(0)  # the driver resets its ring
        fresh.memory(0, 0x3000)[:] = bytes(0x3000)
        peer.start(fresh)
        assert fresh.request(b"again") == b"niaga"


def test_the_device_is_called_again_after_its_delay(server: Serving) -> None:
    looks: list[float] = []
    enough = threading.Event()

    def handle(queue: object) -> float | None:
        looks.append(time.monotonic())
        if len(looks) < 3:
            return 0.02
        enough.set()
        return None

    server.device.handle = handle
    with server.connect() as peer:
        peer.ready()
        assert enough.wait(10)
        assert peer.base() == 0
    assert len(looks) == 3
    assert looks[2] - looks[1] >= 0.02


@pytest.mark.parametrize("delay", ["soon", object()])
def test_a_delay_that_is_no_number_breaks_the_ring(server: Serving, delay: object) -> None:
    server.device.handle = lambda queue: delay
    with server.connect() as peer:
        ring = peer.ready()
        assert readable(ring.err)
        server.lines.wait("ring 0 is broken.*the device failed: TypeError", level="ERROR")
        assert peer.base() == 0


def test_chains_a_device_leaves_do_not_make_it_spin(server: Serving) -> None:
    looks: list[object] = []
    server.device.handle = looks.append
    with server.connect() as peer:
        ring = peer.ready()
        ring.add(b"left", 64)
        ring.kick_it()
        for _ in range(200):
            peer.value(GetQueueNum())
        assert 1 <= len(looks) < 10
        assert peer.base() == 0


def test_a_driver_that_never_rests_does_not_starve_the_control_plane(server: Serving) -> None:
    with server.connect() as peer:
        ring = peer.ready(size=256)
        greedy = server.device.process
        served = threading.Event()

        def process(chain: object) -> None:
            greedy(chain)
            # What a driver on another processor does: the next request is there before this one is done.
            index = ring.memory(0x1000, 4)
            value = (int.from_bytes(index[2:4], "little") + 1) & 0xFFFF
            index[2:4] = value.to_bytes(2, "little")
            served.set()

        server.device.process = process
        ring.add(b"x", 1)
        ring.kick_it()
        assert served.wait(10)
        peer.value(GetQueueNum())
        base = peer.base()
        assert base > 0
        assert not server.lines.having("", "ERROR")
        del server.device.process


def test_stop_ends_a_server_with_a_silent_client_at_once(server: Serving) -> None:
    with server.connect() as peer:
        peer.ready()
        start = time.monotonic()
        server.stop.set()
        assert peer.ended()
        assert time.monotonic() - start < 0.5


def test_backend_requests_may_be_set_up_before_the_owner(server: Serving) -> None:
    # QEMU does it so, and asks for an acknowledgement.
    with server.connect() as peer:
        peer.value(GetFeatures())
        peer.tell(SetProtocolFeatures(PROTOCOL_FEATURES | ProtocolFeature.BACKEND_REQ))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            peer.do(SetBackendReqFd(), [theirs.fileno()])
        peer.do(SetOwner())


def test_rings_may_be_enabled_before_features_are_acknowledged(server: Serving) -> None:
    # QEMU does it so with network devices.
    with server.connect() as peer:
        peer.value(GetFeatures())
        peer.tell(SetProtocolFeatures(PROTOCOL_FEATURES))
        peer.do(SetOwner())
        peer.do(SetVringEnable(0, 1))
        peer.do(SetFeatures(FEATURES))
        peer.do(SetMemTable((peer.region(),)), [peer.ram])
        ring = peer.ring()
        peer.describe(ring)
        peer.do(SetVringKick(0), [ring.kick])
        assert ring.request(b"abc") == b"cba"


def test_addresses_may_come_before_size_and_memory(server: Serving) -> None:
    with server.connect() as peer:
        peer.negotiate()
        peer.do(SetOwner())
        ring = peer.ring()
        peer.describe(ring)
        peer.refused(SetVringKick(0), [ring.kick])
        server.lines.wait("SET_VRING_KICK.*descriptor table of 256 bytes at 0x7f0000000000", level="WARNING")
        peer.do(SetMemTable((peer.region(),)), [peer.ram])
        peer.do(SetVringKick(0), [ring.kick])
        peer.do(SetVringEnable(0, 1))
        assert ring.request(b"abc") == b"cba"


def test_starting_takes_size_and_addresses(server: Serving) -> None:
    with server.connect() as peer:
        peer.negotiate()
        peer.share()
        ring = peer.ring()
        peer.refused(SetVringKick(0), [ring.kick])
        server.lines.wait("cannot start without SET_VRING_NUM")
        peer.do(SetVringNum(0, 16))
        peer.refused(SetVringKick(0), [ring.kick])
        server.lines.wait("cannot start without SET_VRING_ADDR")


def test_features_are_those_of_the_rings_and_the_device(server: Serving) -> None:
    with server.connect() as peer:
        offered = peer.value(GetFeatures())
        assert offered == 0xF_7400_0000
        peer.negotiate(VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES, PROTOCOL_FEATURES)
        assert server.device.events == [f"negotiated {0x1_4000_0000:#x}"]


def test_nothing_is_left_after_an_abrupt_end(server: Serving) -> None:
    with server.connect() as first:
        first.negotiate()
    before = server.settled(1)
    with server.connect() as peer:
        ring = peer.ready()
        ring.add(b"late", 64)
        ring.kick_it()
    assert server.settled(2) == before


def test_footprint_sees_descriptors_and_mappings() -> None:
    before = footprint()
    left, right = socket.socketpair()
    with Peer(left):
        assert footprint() != before
    right.close()
    assert footprint() == before
