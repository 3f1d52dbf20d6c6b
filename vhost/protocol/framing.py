# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Cuts a stream into messages and finds for each descriptor the message it belongs to.

A message is known by its header alone; nothing is allocated for a payload before its bytes have arrived.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vhost.errors import RemoteProtocolError

from .events import close_all
from .header import HEADER_SIZE, VERSION_MASK, Channel, Flag, Header, Side

__all__ = ("Frame", "Framer")

_REPLY = int(Flag.REPLY)
_UNKNOWN = Header(0, 0, 0)


@dataclass(slots=True, eq=False)
class Frame:
    """One message as it was framed, with its descriptors."""

    header: Header = _UNKNOWN
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)
    fd_count: int = 0
    known: bool = False  # whether the header is there
    whole: bool = False  # whether it came in one read of its own, and is not in the buffer

    def add(self, fds: list[int], limit: int) -> None:
        """Take descriptors in; those beyond *limit* are closed at once and only counted."""
        if not self.fds and len(fds) <= limit:
            self.fds, self.fd_count = fds, self.fd_count + len(fds)
            return
        room = limit - len(self.fds)
        self.fds += fds[:room]
        close_all(fds[room:])
        self.fd_count += len(fds)

    def drop(self) -> None:
        """Close the descriptors."""
        close_all(self.fds)
        self.fds = []


class Framer:
    """The receiving half of one end of a socket.

    :param max_payload: bytes of payload to take at most; :param max_fds: descriptors to keep for one message.
    """

    def __init__(self, channel: Channel, side: Side, max_payload: int, max_fds: int) -> None:
        self._channel = channel
        # Flags whose values are known, and these values.
        self._fixed = _REPLY | (VERSION_MASK if channel.version else 0)
        self._flags = channel.version | (_REPLY if side is Side.REQUESTER else 0)
        self._max_payload = max_payload
        self._max_fds = max_fds
        self._buffer = bytearray()
        self._frames: deque[Frame] = deque()  # begun and not handed out; only the last can be without header
        self._next = 0  # offset in the buffer where the last frame begins, or, once it is known, ends
        self.ended = False

    def receive(
        self, data: bytes | bytearray | memoryview, fds: Sequence[int], *, ignore: bool = False
    ) -> None:
        """Take bytes and descriptors; with *ignore* only close the latter."""
        if ignore or self.ended:
            close_all(fds)
            return
        at = 0
        if not self._frames and not self._buffer:
            # What usually arrives, whole messages, goes by the buffer.
            while len(data) - at >= HEADER_SIZE:
                header = Header.unpack(data, at)
                end = at + HEADER_SIZE + header.size
                if end > len(data):
                    break
                payload = bytes(data[at + HEADER_SIZE : end]) if header.size else b""
                self._frames.append(Frame(header, payload, [], 0, True, True))
                at = end
            if at and at == len(data):
                if fds:
                    self._frames[-1].add(list(fds), self._max_fds)
                return
        self.ended = not data
        self._buffer += data[at:]
        last = self._frames[-1] if self._frames else None
        while True:
            if last is None or last.known:
                if len(self._buffer) <= self._next:
                    break
                last = Frame()
                self._frames.append(last)
            if len(self._buffer) - self._next < HEADER_SIZE:
                break
            last.header = Header.unpack(self._buffer, self._next)
            last.known = True
            self._next += HEADER_SIZE + last.header.size
        if last is None:
            close_all(fds)
        else:
            last.add(list(fds), self._max_fds)

    @property
    def idle(self) -> bool:
        """Whether nothing has arrived that was not handed out."""
        return not (self._frames or self._buffer)

    @property
    def missing(self) -> int:
        """Bytes until the message in progress is complete, as far as that is known."""
        if self._frames and not self._frames[-1].known:
            return HEADER_SIZE - (len(self._buffer) - self._next)
        return max(self._next - len(self._buffer), 0) or HEADER_SIZE

    def next_frame(self) -> Frame | None:
        """The next complete message; None if there is none yet.

        :raises RemoteProtocolError: its header is wrong, or the stream ends before its end.
        """
        if not self._frames:
            return None
        frame = self._frames[0]
        if frame.known:
            header = frame.header
            if header.flags & self._fixed != self._flags or header.size > self._max_payload:
                raise self._wrong(header)
        if frame.whole:
            return self._frames.popleft()
        end = HEADER_SIZE + frame.header.size
        if not frame.known or len(self._buffer) < end:
            if self.ended:
                raise RemoteProtocolError(
                    f"the stream ends inside a message, after {len(self._buffer)} bytes of it"
                )
            return None
        self._frames.popleft()
        with memoryview(self._buffer) as view:
            frame.payload = bytes(view[HEADER_SIZE:end])
        del self._buffer[:end]
        self._next -= end
        return frame

    def _wrong(self, header: Header) -> RemoteProtocolError:
        where = f"request {header.request} on the socket for {self._channel.label}"
        if self._channel.version and header.version != self._channel.version:
            what = f"has version {header.version}, not {self._channel.version}"
        elif header.size > self._max_payload:
            what = f"claims {header.size} bytes of payload, the limit is {self._max_payload}"
        else:
            what = f"has the reply flag {'clear' if self._flags & _REPLY else 'set'}"
        return RemoteProtocolError(f"{where} {what}")

    def close(self) -> None:
        """Close all descriptors and forget all bytes."""
        while self._frames:
            self._frames.popleft().drop()
        self._buffer.clear()
        self._next = 0
