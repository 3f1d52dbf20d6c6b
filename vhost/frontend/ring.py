# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The requests of a frontend that are in flight on one virtqueue.

Flows that may have to wait are exchanges; who runs them decides how.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from vhost.errors import VirtqueueError
from vhost.protocol import Message

from .exchange import Exchange, Readable, Until
from .link import Link
from .ram import Buffer, GuestRam
from .vring import Vring, drain

__all__ = ("Ring", "Completion", "Data", "parts")

#: Something to copy into guest memory.
Data: TypeAlias = bytes | bytearray | memoryview

# What the writable part holds before: a status byte that the device forgot does not look like success.
_UNWRITTEN: Final = b"\xff"

# Of a ring that nobody calls for: how often it is looked at in one go, and the seconds to the next.
_LOOKS: Final = 100
_PAUSE: Final = 0.0002


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
    chain: list[tuple[int, int]]
    n_readable: int


class Ring:
    """The driver's side of a queue, not thread-safe.

    :param vring: what is shared with the backend; closed with the ring.
    :param link: whose end is the end of all requests,
    :param revive: unless this, run when it has ended, returns true: the ring goes on with another link then.
    """

    def __init__(
        self, vring: Vring, ram: GuestRam, link: Link, revive: Callable[[Link], Exchange[bool]]
    ) -> None:
        self.vring = vring
        self.index = vring.index
        self.running = False
        self._base = vring.driver.base
        self._ram = ram
        self._link = link
        self._revive = revive
        self._broken: str | None = None
        self._tokens = 0
        self._returned = 0  # requests so far, whoever reaped them
        self._waiting: list[int] = []  # what that was for those who wait for more
        self._requests: dict[int, _Request] = {}  # by head
        self._flying: set[int] = set()  # tokens of requests whose completion somebody wants
        self._done: dict[int, Completion] = {}  # by token, in order of completion

    # ---- starting and stopping -----------------------------------------------------------------------------

    def setup(self, base: int | None = None) -> list[tuple[Message, tuple[int, ...]]]:
        """The messages, with their descriptors, that start the ring; it goes on where it stopped.

        A broken ring starts from scratch, and the requests that were in flight are lost.

        :param base: next entry of the avail ring the device is to take, None: as it left it.
        """
        if self._broken is not None:
            self._forget()
            self.vring.lay_out()
            self._broken = None
            self._base = self.vring.driver.base
        if base is not None:
            self._base = base
        return self.vring.messages(self._base)

    def started(self) -> None:
        """The backend has what :meth:`setup` returned; it is told to look, whatever it missed so far."""
        self.running = True
        self.vring.kick()

    def stopped(self, base: int) -> None:
        """The backend has stopped the ring and would go on at `base`."""
        self.running = False
        self._base = base
        self._wake_others()

    def reset(self) -> None:
        """The device has forgotten the ring, and so do we at the next start."""
        self.running = False
        self._broken = f"queue {self.index}: the device was reset"
        self._wake_others()

    @property
    def broken(self) -> bool:
        """Whether the ring can only start from scratch."""
        return self._broken is not None

    def reattach(self, link: Link, *, recorded: bool, resubmit: bool | None) -> None:
        """The backend is gone: take what it returned, and get ready for another one behind `link`.

        :param recorded: an inflight region tells the other one what is in flight. Else it cannot know, and
        :param resubmit: those requests are run again, or, if it is false, forgotten.
        """
        self._link = link
        self.collect()
        if self._broken is not None or not self.running:
            return
        if self._requests and not recorded:
            # With None there was nothing in flight: what is now, no backend has seen.
            self._start_over(resubmit=resubmit is not False)
        self._base = self.vring.driver.base

    def collect(self) -> None:
        """Take back what the backend has used, in good order or not: whoever waits hears of it."""
        try:
            self.reap()
        except VirtqueueError:
            pass

    def _start_over(self, *, resubmit: bool) -> None:
        requests = sorted(self._requests.values(), key=lambda request: request.token) if resubmit else []
        self._requests = {head: one for head, one in self._requests.items() if not resubmit}
        if not resubmit:
            self._forget()
            self._wake_others()
        self.vring.lay_out()
        for request in requests:
            view = request.buffer.view
            view[request.writable_from :] = _UNWRITTEN * (len(view) - request.writable_from)
            n = request.n_readable
            self._requests[self.vring.driver.add(request.chain[:n], request.chain[n:])] = request
        self.vring.driver.publish()

    # ---- requests ------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests the device has not returned."""
        return len(self._requests)

    @property
    def untaken(self) -> int:
        """Requests whose completion somebody wants and has not taken yet, wherever it is."""
        return len(self._flying) + len(self._done)

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
        self._check()
        parts = [memoryview(data).cast("B") for data in readable if len(data)]
        rooms = [size for size in writable if size]
        split = sum(map(len, parts))
        if not split + sum(rooms):
            raise ValueError(f"queue {self.index}: a request needs at least one byte to read or to write")
        if len(parts) + len(rooms) > self.vring.max_chain:
            raise ValueError(
                f"queue {self.index}: a request of {len(parts) + len(rooms)} pieces; "
                f"this ring takes up to {self.vring.max_chain}"
            )
        if not self.vring.driver.free:
            return None
        buffer = self._ram.alloc(split + sum(rooms))
        start, at, chain = self.vring.address(buffer), 0, []
        for part in parts:
            buffer.view[at : at + len(part)] = part
            chain.append((start + at, len(part)))
            at += len(part)
        buffer.view[split:] = _UNWRITTEN * (buffer.size - split)
        for size in rooms:
            chain.append((start + at, size))
            at += size
        head = self.vring.driver.add(chain[: len(parts)], chain[len(parts) :])
        if head < 0:
            self._ram.free(buffer)
            return None
        self._tokens += 1
        self._requests[head] = _Request(self._tokens, buffer, split, chain, len(parts))
        self._flying.add(self._tokens)
        if publish:
            self.publish()
        return self._tokens

    def publish(self) -> None:
        """Show the device what was submitted, and kick it if it wants to be."""
        self._check()
        if self.vring.driver.publish():
            self.vring.kick()

    def take(self, token: int | None = None) -> Completion | None:
        """A completion that is there already: that of `token`, or the oldest."""
        if token is None:
            token = next(iter(self._done), None)
        return None if token is None else self._done.pop(token, None)

    def reap(self) -> None:
        """Take back what the device has used.

        :raises VirtqueueError: the device returned what it was not given; the ring is broken from now on.
        """
        if self._broken is not None:
            return
        self._link.attend()
        used: list[tuple[int, int]] = []
        try:
            used = self.vring.driver.poll()
        except VirtqueueError as error:
            self._broken = f"queue {self.index}: {error}"
        if self._broken is not None:
            # Outside the handler: an exception that somebody keeps must not keep the ring's memory.
            self._wake_others()
            raise VirtqueueError(self._broken)
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
        self._returned += len(used)
        self._wake_others()

    def _wake_others(self) -> None:
        # In an event loop many wait for one call descriptor, and who is first drains it: those who have
        # something to learn would sleep on if the loop has not seen it readable in between.
        over = self._broken is not None or not self.running
        if any(over or before != self._returned for before in self._waiting):
            os.eventfd_write(self.vring.call, 1)

    def arrival(self) -> Exchange[None]:
        """Wait until at least one more request has come back, to this or to another who waits.

        What was submitted and not published is published first; else the wait could be for ever.

        :raises VirtqueueError: the ring is broken, by this side's account or by the backend's.
        :raises OSError: the backend is gone.
        """
        call, err, before = self.vring.call, self.vring.err, self._returned
        while True:
            self.reap()
            if self._returned != before:
                return
            self._check()
            if not self.running:
                raise VirtqueueError(
                    f"queue {self.index} is stopped with {self.in_flight} requests in flight; start it again"
                )
            if self.vring.driver.held:
                self.publish()
            if self.vring.driver.calls_on():
                continue
            if self._link.ended:
                yield from self._still_there()
                continue
            step = Readable((call, err, *self._link.watched), f"queue {self.index} to complete a request")
            self._waiting.append(before)
            try:
                yield self._polled(step) if self.vring.polled else step
            finally:
                self._waiting.remove(before)
            self._check()
            drain(call)
            if step.ready <= {call}:
                continue
            self.reap()
            if self._returned != before:
                return  # what came back before the end is worth more than the news of it
            if err in step.ready:
                drain(err)
                self._broken = f"queue {self.index}: the backend reports an error in the ring; see its log"
                self._wake_others()
                raise VirtqueueError(self._broken)
            yield from self._still_there()

    def _still_there(self) -> Exchange[None]:
        link = self._link
        try:
            link.check()
        except ConnectionError:
            if not (yield from self._revive(link)):
                raise

    def _polled(self, other: Readable) -> Until:
        # Nobody calls: look at the ring for a while, and then at everything else.
        def looked() -> bool:
            return any(self.vring.driver.calls_on() for _ in range(_LOOKS)) or other.attempt()

        return Until(looked, other.what, again=_PAUSE)

    def room(self) -> Exchange[bool]:
        """Wait for an arrival, unless there is nothing to wait for: False then, at once."""
        self._check()
        if not self._requests:
            return False
        yield from self.arrival()
        return True

    def completion(self, token: int | None) -> Exchange[Completion]:
        """Wait for the request `token`, or for any.

        :raises LookupError: there is no such request.
        """
        while (done := self.take(token)) is None:
            self._check()
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

    def _check(self) -> None:
        if self._broken is not None:
            raise VirtqueueError(f"{self._broken}; the ring has to be stopped and started")
        self.vring.check_open()

    # ---- the end -------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        for request in self._requests.values():
            self._ram.free(request.buffer)
        self._requests.clear()
        self._flying.clear()

    def close(self) -> None:
        """Give back memory and descriptors; what is in flight is lost."""
        self._forget()
        self.vring.close()


def parts(
    readable: Data | Sequence[Data], writable: int | Sequence[int]
) -> tuple[Sequence[Data], Sequence[int]]:
    """One piece of data, or one size, where several may stand."""
    return (
        [readable] if isinstance(readable, (bytes, bytearray, memoryview)) else readable,
        [writable] if isinstance(writable, int) else writable,
    )
