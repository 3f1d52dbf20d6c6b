# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One virtqueue of a frontend: its memory, its event descriptors and the requests in flight.

Flows that may have to wait are exchanges; who runs them decides how.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from vhost.errors import VirtqueueError
from vhost.protocol import (
    Message,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringErr,
    SetVringKick,
    SetVringNum,
)
from vhost.virtqueue import DriverQueue, RingLayout

from .exchange import Exchange, Readable
from .link import Link
from .ram import Buffer, GuestRam

__all__ = ("Ring", "Completion", "Data", "parts")

#: Something to copy into guest memory.
Data: TypeAlias = bytes | bytearray | memoryview

# Descriptors an indirect table of ours holds; a longer chain goes into the ring itself.
_TABLE_LEN: Final = 16
_TABLE_ALIGN: Final = 16
# What the writable part holds before: a status byte that the device forgot does not look like success.
_UNWRITTEN: Final = b"\xff"


@dataclass(frozen=True, slots=True)
class Completion:
    """A request that came back.

    :ivar token: what ``submit`` returned for it.
    :ivar written: bytes the device says it has written.
    :ivar buffer: the whole writable part, beyond `written` as the device left it.
    """

    token: int
    written: int
    buffer: bytes

    @property
    def data(self) -> bytes:
        """What the device has written."""
        return self.buffer[: self.written]


@dataclass(frozen=True, slots=True)
class _Request:
    token: int
    buffer: Buffer
    writable_from: int


class Ring:
    """The driver's side of queue `index`, not thread-safe.

    :param size: entries, a power of two up to 32768.
    :raises MemoryError: `ram` is too small for the ring.
    """

    def __init__(
        self, index: int, size: int, ram: GuestRam, link: Link, *, event_idx: bool, indirect: bool
    ) -> None:
        self.index = index
        self.size = size
        self.running = False
        self.base = 0
        self._layout = RingLayout(size)
        self._ram = ram
        self._link = link
        self._event_idx = event_idx
        self._indirect = indirect
        self._broken: str | None = None
        self._tokens = 0
        self._requests: dict[int, _Request] = {}  # by head
        self._done: dict[int, Completion] = {}  # by token, in order of completion
        self._flying: set[int] = set()  # tokens of requests whose completion somebody wants
        self._parts: list[Buffer] = []
        self._events: list[int] = []
        try:
            for _ in range(3):
                self._events.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._driver: DriverQueue | None = self._lay_out()
        except BaseException:
            self.close()
            raise

    def _lay_out(self) -> DriverQueue:
        """Take fresh memory, all zero, for a ring that starts at 0."""
        layout = self._layout
        wanted = [
            (layout.descriptor, layout.DESCRIPTOR_ALIGN),
            (layout.avail, layout.AVAIL_ALIGN),
            (layout.used, layout.USED_ALIGN),
        ]
        if self._indirect:
            wanted.append((16 * self.size * _TABLE_LEN, _TABLE_ALIGN))
        for size, align in wanted:
            part = self._ram.alloc(size, align)
            self._parts.append(part)
            part.view[:] = bytes(size)
        desc, avail, used, *tables = self._parts
        return DriverQueue(
            layout,
            desc.view,
            avail.view,
            used.view,
            event_idx=self._event_idx,
            tables=tables[0].view if tables else None,
            tables_gpa=tables[0].gpa if tables else 0,
            table_len=_TABLE_LEN,
        )

    # ---- setting up ----------------------------------------------------------------------------------------

    def setup(self, base: int | None = None) -> list[tuple[Message, tuple[int, ...]]]:
        """The messages, with their descriptors, that start the ring; it goes on where it stopped.

        A broken ring starts over at 0 in fresh memory, and the requests that were in flight are lost.

        :param base: next entry of the avail ring the device is to take, None: as it left it.
        """
        if self._broken is not None:
            self._forget()
            self._driver = self._lay_out()
        if base is not None:
            self.base = base
        for event in self._events:
            _drain(event)
        kick, call, err = self._events
        address = [self._ram.user_address(part.gpa) for part in self._parts[:3]]
        return [
            (SetVringNum(self.index, self.size), ()),
            (SetVringBase(self.index, self.base), ()),
            (
                SetVringAddr(
                    self.index, flags=0, descriptor=address[0], available=address[1], used=address[2], log=0
                ),
                (),
            ),
            (SetVringErr(self.index), (err,)),
            (SetVringCall(self.index), (call,)),
            (SetVringKick(self.index), (kick,)),
        ]

    def started(self) -> None:
        """The backend has what :meth:`setup` returned; it is told to look, whatever it missed so far."""
        self.running = True
        os.eventfd_write(self._events[0], 1)

    def stopped(self, base: int) -> None:
        """The backend has stopped the ring and would go on at `base`."""
        self.running = False
        self.base = base

    # ---- requests ------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests the device has not returned."""
        return len(self._requests)

    def submit(
        self, readable: Sequence[Data], writable: Sequence[int], *, publish: bool = True
    ) -> int | None:
        """Copy `readable` into guest memory and queue it, with `writable` bytes of room for the answer.

        Each element becomes a descriptor of its own; empty ones are left out.

        :param publish: show it to the device now; without, :meth:`publish` does so for many.
        :returns: a token that names the request, None when the ring is full.
        :raises ValueError: the ring can never hold it.
        :raises VirtqueueError: the ring is broken.
        :raises MemoryError: guest memory is full.
        """
        driver = self._usable()
        parts = [memoryview(data).cast("B") for data in readable if len(data)]
        rooms = [size for size in writable if size]
        split = sum(map(len, parts))
        if not split + sum(rooms):
            raise ValueError(f"queue {self.index}: a request needs at least one byte to read or to write")
        if not driver.free:
            return None
        buffer = self._ram.alloc(split + sum(rooms))
        at, chain = 0, []
        for part in parts:
            buffer.view[at : at + len(part)] = part
            chain.append((buffer.gpa + at, len(part)))
            at += len(part)
        buffer.view[split:] = _UNWRITTEN * (buffer.size - split)
        for size in rooms:
            chain.append((buffer.gpa + at, size))
            at += size
        try:
            head = driver.add(chain[: len(parts)], chain[len(parts) :])
        except BaseException:
            self._ram.free(buffer)
            raise
        if head < 0:
            self._ram.free(buffer)
            return None
        self._tokens += 1
        self._requests[head] = _Request(self._tokens, buffer, split)
        self._flying.add(self._tokens)
        if publish:
            self.publish()
        return self._tokens

    def publish(self) -> None:
        """Show the device what was submitted, and kick it if it wants to be."""
        if self._usable().publish():
            os.eventfd_write(self._events[0], 1)

    def take(self, token: int | None = None) -> Completion | None:
        """A completion that is there already: that of `token`, or the oldest."""
        if token is None:
            token = next(iter(self._done), None)
        return None if token is None else self._done.pop(token, None)

    def reap(self) -> int:
        """Take back what the device has used; the number of requests.

        :raises VirtqueueError: the device returned what it was not given; the ring is broken from now on.
        """
        if self._driver is None or self._broken is not None:
            return 0
        try:
            used = self._driver.poll()
        except VirtqueueError as error:
            self._broken = f"queue {self.index}: {error}"
            raise
        for head, written in used:
            request = self._requests.pop(head)
            room = request.buffer.size - request.writable_from
            if written > room:
                self._broken = (
                    f"queue {self.index}: the device says it wrote {written} bytes in a room of {room}"
                )
            elif request.token in self._flying:
                self._flying.discard(request.token)
                answer = bytes(request.buffer.view[request.writable_from :])
                self._done[request.token] = Completion(request.token, written, answer)
            self._ram.free(request.buffer)
        return len(used)

    def arrival(self) -> Exchange[None]:
        """Wait until at least one more request has come back.

        :raises VirtqueueError: the ring is broken, by this side's account or by the backend's.
        :raises OSError: the backend is gone.
        """
        _, call, err = self._events
        while not self.reap():
            driver = self._usable()
            if not self.running:
                raise VirtqueueError(
                    f"queue {self.index} is stopped with {self.in_flight} requests in flight; start it again"
                )
            if driver.calls_on():
                continue
            step = Readable((call, err, self._link.fileno()), f"queue {self.index} to complete a request")
            yield step
            self._usable()
            _drain(call)
            if step.ready <= {call} or self.reap():
                continue
            if err in step.ready:
                _drain(err)
                self._broken = f"queue {self.index}: the backend reports an error in the ring; see its log"
                raise VirtqueueError(self._broken)
            self._link.check()

    def completion(self, token: int | None) -> Exchange[Completion]:
        """Wait for the request `token`, or for any.

        :raises LookupError: there is no such request.
        """
        while (done := self.take(token)) is None:
            if not self._flying or (token is not None and token not in self._flying):
                raise LookupError(
                    f"queue {self.index} has no request {'' if token is None else token} in flight"
                )
            yield from self.arrival()
        return done

    def request(self, readable: Sequence[Data], writable: Sequence[int]) -> Exchange[bytes]:
        """One request from submission to what the device wrote, waiting for room in the ring before."""
        while (token := self.submit(readable, writable)) is None:
            yield from self.arrival()
        try:
            return (yield from self.completion(token)).data
        except BaseException:
            self.drop(token)
            raise

    def drop(self, token: int) -> None:
        """Nobody will ask for `token` any more; its memory is free when the device has returned it."""
        self._flying.discard(token)
        self._done.pop(token, None)

    def _usable(self) -> DriverQueue:
        if self._broken is not None:
            raise VirtqueueError(f"{self._broken}; the ring has to be stopped and started")
        if self._driver is None:
            raise ConnectionAbortedError(errno.ECONNABORTED, f"queue {self.index} is closed")
        return self._driver

    # ---- the end -------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._driver = None
        for buffer in (*self._parts, *(request.buffer for request in self._requests.values())):
            self._ram.free(buffer)
        self._parts.clear()
        self._requests.clear()
        self._flying.clear()
        self._broken = None
        self.base = 0

    def close(self) -> None:
        """Give back memory and descriptors; what is in flight is lost."""
        self._forget()
        for event in self._events:
            os.close(event)
        self._events.clear()


def _drain(event: int) -> None:
    try:
        os.eventfd_read(event)
    except BlockingIOError:
        pass


def parts(
    readable: Data | Sequence[Data], writable: int | Sequence[int]
) -> tuple[Sequence[Data], Sequence[int]]:
    """One piece of data, or one size, where several may stand."""
    return (
        [readable] if isinstance(readable, (bytes, bytearray, memoryview)) else readable,
        [writable] if isinstance(writable, int) else writable,
    )
