# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A driver of a socket device (virtio 1.3, 5.10) by our frontend: one stream, as far as the lab needs it."""

import struct
from enum import IntEnum
from typing import NamedTuple

from vhost.frontend import Frontend

__all__ = ("HOST", "Stream")

HOST = 2  # CID of this machine
RECEIVE, SEND = 0, 1  # queues
BUFFERS, PIECE = 32, 4096
STREAM = 1  # type of socket
ROOM = 64 << 10  # bytes that the other end may send before they are taken

_HEADER = struct.Struct("<QQIIIHHIII")


class Op(IntEnum):
    """VIRTIO_VSOCK_OP_*"""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Header(NamedTuple):
    """struct virtio_vsock_hdr"""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    size: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int


class Stream:
    """A connection from us, the guest, to a port of this machine, which has accepted it.

    :param cid: ours.
    """

    def __init__(self, frontend: Frontend, cid: int, port: int, our_port: int = 1024) -> None:
        self._send_queue, self._receive_queue = frontend.queue(SEND), frontend.queue(RECEIVE)
        self._ends = cid, HOST, our_port, port
        self._taken = self._sent = 0
        self._credit = 0, 0  # what the other end has room for, and how much it has taken
        self._data = bytearray()
        self._ended = False
        for _ in range(BUFFERS):
            self._offer()
        self._send(Op.REQUEST)
        answer = self._receive()
        assert answer == Op.RESPONSE, f"port {port}: the answer to a request is {answer.name}"

    def send(self, data: bytes) -> None:
        """Sends all of it, as fast as the other end takes it."""
        rest = memoryview(data)
        while rest:
            room, taken = self._credit
            if piece := rest[: min(PIECE, room - (self._sent - taken))]:
                self._send(Op.RW, bytes(piece))
                self._sent += len(piece)
                rest = rest[len(piece) :]
            else:
                self._send(Op.CREDIT_REQUEST)
                self._receive()

    def receive(self, size: int) -> bytes:
        """Waits for so many bytes."""
        while len(self._data) < size:
            assert not self._ended, f"the stream has ended after {len(self._data)} of {size} bytes"
            self._receive()
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

    def end(self) -> None:
        """Waits until the other end has closed the connection."""
        while not self._ended:
            self._receive()

    def _offer(self) -> None:
        self._receive_queue.submit(writable=_HEADER.size + PIECE)

    def _send(self, op: Op, data: bytes = b"") -> None:
        header = Header(*self._ends, len(data), STREAM, op, 0, ROOM, self._taken)
        self._send_queue.wait(self._send_queue.submit(_HEADER.pack(*header) + data))

    def _receive(self) -> Op:
        # The next packet; what it says is noted, and answered.
        packet = self._receive_queue.wait().data
        self._offer()
        header = Header._make(_HEADER.unpack_from(packet))
        src_cid, dst_cid, src_port, dst_port = self._ends
        assert header[:4] == (dst_cid, src_cid, dst_port, src_port), f"not of our stream: {header}"
        assert (header.type, header.size) == (STREAM, len(packet) - _HEADER.size), header
        self._credit = header.buf_alloc, header.fwd_cnt
        op = Op(header.op)
        if op == Op.RW:
            self._data += packet[_HEADER.size :]
            self._taken += header.size
        if op in (Op.RW, Op.CREDIT_REQUEST):
            self._send(Op.CREDIT_UPDATE)
        self._ended |= op in (Op.SHUTDOWN, Op.RST)
        return op
