# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the demo shows of a conversation, against the bytes on the wire."""

import argparse
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from vhost import mem
from vhost.cli import demo
from vhost.cli.progress import rate
from vhost.cli.tap import Tap
from vhost.virtio.blk import BlkFeature

VERSION, REPLY, NEED_REPLY = 1, 4, 8


def frame(request: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("=III", request, VERSION | flags, len(payload)) + payload


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


class Wire:
    """A tap, the socket at its other end, and what it has shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tap = Tap(self.lines.append, BlkFeature)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("")  # an abstract address of the kernel's choice
            listener.listen()
            self.tap.connect(listener.getsockname())
            self.peer, _ = listener.accept()

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
        assert self.tap.sendmsg([data], control) == len(data)
        received, more, _, _ = socket.recv_fds(self.peer, len(data), 8)
        assert received == data
        assert len(more) == len(fds)
        for fd in more:
            os.close(fd)

    def answer(self, data: bytes) -> None:
        self.peer.sendall(data)
        assert self.tap.recvmsg(len(data), 1024)[0] == data


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.tap.close()
    wire.peer.close()


def test_negotiation_in_words(wire: Wire) -> None:
    wire.send(frame(1))
    wire.answer(frame(1, u64(1 << 30 | 1 << 9), REPLY))
    wire.send(frame(15))
    wire.answer(frame(15, u64(1 << 3), REPLY))
    wire.send(frame(16, u64(1 << 3)))
    wire.send(frame(3, b"", NEED_REPLY))
    wire.answer(frame(3, u64(0), REPLY))
    wire.send(frame(2, u64(1 << 30), NEED_REPLY))
    wire.answer(frame(2, u64(5), REPLY))
    assert wire.lines == [
        "> GET_FEATURES",
        "< 0x40000200 FLUSH PROTOCOL_FEATURES",
        "> GET_PROTOCOL_FEATURES",
        "< 0x8 REPLY_ACK",
        "> SET_PROTOCOL_FEATURES 0x8 REPLY_ACK",
        "> SET_OWNER",
        "< ok",
        "> SET_FEATURES 0x40000000 PROTOCOL_FEATURES",
        "< SET_FEATURES failed: 0x5",
    ]
    assert wire.tap.messages == len(wire.lines)


def test_messages_cut_anywhere(wire: Wire) -> None:
    question, answer = frame(1), frame(1, u64(0x200), REPLY)
    wire.send(question[:5])
    assert wire.lines == []
    wire.send(question[5:])
    wire.answer(answer[:13])
    wire.answer(answer[13:])
    assert wire.lines == ["> GET_FEATURES", "< 0x200 FLUSH"]


def test_descriptors_are_counted_and_not_kept(wire: Wire) -> None:
    fd = os.memfd_create("kick")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        wire.send(frame(12, u64(1)), (fd,))
    assert wire.lines == ["> SET_VRING_KICK index=1 no_fd=0 +1 fd"] * 3
    assert wire.tap.fileno() >= 0
    wire.send(frame(3))  # the event before gives up what it holds
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    os.close(fd)


def test_what_cannot_be_read_still_passes(wire: Wire) -> None:
    wire.send(b"\xff" * 12)
    wire.answer(frame(1, u64(1), REPLY))
    assert len(wire.lines) == 2
    assert all(line.startswith("? ") for line in wire.lines)


@pytest.mark.parametrize(
    ("n", "seconds", "text"),
    [
        (999, 1, "999 B/s"),
        (4096, 2, "2 kB/s"),
        (3 << 20, 1, "3 MB/s"),
        (5 * 10**9, 2, "2.50 GB/s"),
        (0, 0, "0 B/s"),
    ],
)
def test_rates(n: int, seconds: float, text: str) -> None:
    assert rate(n, seconds) == text


def test_demo_says_why_it_cannot_run_in_the_xen_build(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mem, "SELECTED", "xen")
    assert demo.run(argparse.Namespace(size=1)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "maps memory of Xen guests only" in err
    assert "(memory: xen)" in err
