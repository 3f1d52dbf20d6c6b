# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Translations of I/O addresses: what is known, what was asked for, and which rings wait for it."""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic
from typing import Final, Protocol

from vhost.backend.channel import RequestChannel, Watch
from vhost.mem import GuestMemory, Iotlb
from vhost.protocol import BackendIotlbMsg, IotlbPerm, IotlbType, Quirks
from vhost.virtqueue import Miss

__all__ = ("Translations", "Waiter")

log = logging.getLogger("vhost.backend")

_PAGE: Final = 4096
# Ranges one ring waits for at once; it asks for more when it has these.
_MOST: Final = 64
# Ranges asked for beyond which nothing is asked for in advance.
_LIMIT: Final = 1024
# Seconds for which an answer may be under way.
_PATIENCE: Final = 0.05


class Waiter(Protocol):
    """A ring that cannot go on without translations."""

    def translated(self) -> None:
        """All that it waits for is there; in the control plane's thread."""

    def denied(self, miss: Miss) -> None:
        """The front-end has a translation that does not permit this; in the control plane's thread."""


@dataclass(eq=False, slots=True)
class _Asked:
    # A range that the front-end was asked for, or will be when there is room.
    address: int
    end: int
    write: bool
    waiting: set[Waiter] = field(default_factory=set)
    sent: bool = False
    read: bool = False  # by the front-end
    turn: int = 0  # when it was sent
    since: float = 0.0  # likewise, by the clock
    lost: bool = False  # its answer was of no use: asked for again only when there is a reason

    @property
    def page_end(self) -> int:
        return (self.end + _PAGE - 1) & -_PAGE

    def covers(self, address: int, *, write: bool) -> bool:
        # Whole pages: the answer is hardly ever for less.
        return self.write == write and self.address & -_PAGE <= address < self.page_end

    def message(self, kind: IotlbType) -> BackendIotlbMsg:
        perm = IotlbPerm.WRITE if self.write else IotlbPerm.READ
        return BackendIotlbMsg(self.address, self.end - self.address, 0, int(perm), int(kind))


class Translations:
    """Made with the connection. Asking is for any thread, the rest for the control plane's.

    A range is asked for once, however many rings need it, and no thread waits for room in the socket: what
    could not be sent is sent when there is room. A front-end that has no translation does not answer; a ring
    that is kicked asks again then.

    :param memory: where translations lead.
    :param quirks: how far to go along with the front-end.

    :ivar iotlb: what is known; None: addresses are not translated.
    :ivar asked: requests that were sent, :ivar received: translations that came, :ivar taken_back:
        invalidations, :ivar reopened: rings that had to be set up anew after one.
    """

    def __init__(self, memory: GuestMemory, quirks: Quirks) -> None:
        self.iotlb: Iotlb | None = None
        self.features = self.protocol_features = 0
        self.asked = self.received = self.taken_back = self.reopened = 0
        self._memory = memory
        self._quirks = quirks
        self._lock = Lock()
        self._watch: Watch | None = None
        self._channel: RequestChannel | None = None
        self._asked: dict[_Asked, None] = {}
        self._waits: dict[Waiter, set[_Asked]] = {}
        self._unsent: dict[_Asked, IotlbType] = {}
        self._late: list[_Asked] = []  # unanswered when the rings stopped
        self._mute = False  # nobody is told again that there is no channel
        self._grain = 1 << 64  # bytes that an answer covers, by the last one

    def switch(self, on: bool) -> None:
        """Translate addresses from now on, or do not; no ring runs."""
        if on != (self.iotlb is not None):
            self.clear()
            self.iotlb = Iotlb(self._memory) if on else None

    # ---- the channel ----

    def set_channel(self, fd: int) -> None:
        """SET_BACKEND_REQ_FD: ask there from now on, for all that is unanswered.

        :raises RemoteProtocolError: it is no stream socket.
        """
        if self._watch is None:
            self._watch = Watch()
        channel = RequestChannel(fd, self._watch, self._quirks)
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = channel
            self._mute = False
            for entry in self._asked:
                self._again(entry)
            self._flush()

    def fileno(self) -> int:
        """Readable when :meth:`ready` should be called; -1: never, so far."""
        return -1 if self._watch is None else self._watch.fileno()

    def ready(self) -> None:
        """Take what came by the channel, and send what there was no room for."""
        with self._lock:
            if self._channel is None:
                return
            if not self._channel.take():
                log.info("the front-end has closed the channel for requests of the back-end")
                self._channel.close()
                self._channel = None
                self._complain()
            self._flush()

    # ---- what rings need ----

    def ask(
        self, ring: Waiter, needed: Sequence[Miss], ahead: Sequence[Miss] = (), *, again: bool = False
    ) -> bool:
        """Have `ring` wait until all that is needed is known, and ask for what nobody has asked for yet.

        :param ahead: what it will need next, and does not wait for.
        :param again: if there is nothing new to ask for, ask once more for the first range that has had no
            answer for 50 ms: the front-end may have had none before. When it answers, it is asked again for
            all that it left out.
        :returns: False: there is nothing to wait for, all is known.
        """
        with self._lock:
            self._leave(ring)
            waits: set[_Asked] = set()
            before = len(self._asked)
            # What is asked for writing will mostly be readable too.
            for miss in sorted(needed, key=_writes_first):
                if len(waits) == _MOST:
                    break
                for entry in self._entries(miss, waits):
                    if len(waits) == _MOST:
                        break
                    waits.add(entry)
                    entry.waiting.add(ring)
            if not waits:
                return False
            self._waits[ring] = waits
            self._complain()
            for miss in ahead:
                for _ in self._entries(miss):
                    if len(self._asked) >= _LIMIT:
                        break
            if again and len(self._asked) == before:
                self._look()
                late = monotonic() - _PATIENCE
                left_out = (entry for entry in self._asked if entry in waits and entry.read)
                if first := next((entry for entry in left_out if entry.since < late), None):
                    self._again(first)
            if len(self._asked) > _LIMIT:
                self._forget_what_nobody_waits_for()
            self._flush()
            return True

    def leave(self, ring: Waiter) -> None:
        """The ring does not wait any more."""
        with self._lock:
            self._leave(ring)

    # ---- what the front-end says ----

    def update(self, iova: int, size: int, user_addr: int, *, read: bool, write: bool) -> None:
        """An UPDATE: enter a translation, and wake the rings that have waited for it.

        :raises GuestMemoryError: it makes no sense, or leads to what is no guest memory.
        """
        assert self.iotlb is not None
        with self._lock:
            self.received += 1
            if late := [entry for entry in self._late if iova <= entry.address < iova + size]:
                # It was asked for by rings that have stopped since, and nobody would take it back.
                self._late.remove(late[0])
                return
            try:
                self.iotlb.update(iova, size, user_addr, read=read, write=write)
            except BaseException:
                for entry in self._asked:
                    entry.lost |= iova <= entry.address < iova + size
                raise
            self._grain = max(_PAGE, 1 << size.bit_length() - 1)
            awake, denied = self._answer(iova, iova + size)
            self._flush()
        for entry, rings in denied:
            for ring in rings:
                ring.denied(Miss(entry.address, entry.end - entry.address, entry.write))
        for ring in awake:
            ring.translated()

    def invalidate(self, iova: int, size: int) -> None:
        """An INVALIDATE, while no chain is in use that was popped with one of these translations."""
        assert self.iotlb is not None
        with self._lock:
            self.taken_back += 1
            self.iotlb.invalidate(iova, size)
            self._look()
            for entry in self._asked:
                # What the front-end could not answer so far may have an answer now.
                if entry.read and entry.address < iova + size and iova < entry.end:
                    entry.lost = True
                    if entry.waiting:
                        self._again(entry)
            self._flush()

    def known(self, iova: int, size: int) -> bool:
        """Whether anything is known of these addresses."""
        assert self.iotlb is not None
        return bool(self.iotlb.table.overlapping(iova, iova + size))

    def retry(self) -> None:
        """There is more guest memory: answers that led nowhere may lead there."""
        with self._lock:
            for entry in self._asked:
                if entry.lost:
                    self._again(entry)
            self._flush()

    def clear(self) -> None:
        """Forget everything, also what was asked for: rings ask when they go on."""
        with self._lock:
            if self.iotlb is not None:
                # It holds on to guest memory, however long somebody holds on to this.
                self.iotlb.clear()
            self._asked.clear()
            self._waits.clear()
            self._unsent = {e: kind for e, kind in self._unsent.items() if kind is IotlbType.ACCESS_FAIL}

    def rest(self) -> None:
        """The last ring has stopped: none of what is known outlives that, nor answers that are under way."""
        if self.iotlb is None:
            return
        late = [entry for entry in self._asked if entry.sent and not entry.lost]
        self.clear()
        self._late = late[:_LIMIT]
        if self.asked or self.received:
            log.info(
                "translations: %d asked for, %d received, %d times taken back, %d rings set up anew",
                self.asked,
                self.received,
                self.taken_back,
                self.reopened,
            )

    def begin(self) -> None:
        """A ring starts: what the front-end answers now is true now."""
        self._late.clear()

    def close(self) -> None:
        """No ring is there any more."""
        self.clear()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    # ---- behind the lock ----

    def _entries(self, miss: Miss, own: Collection[_Asked] = ()) -> Iterator[_Asked]:
        # The ranges that make up what is lacking, entered where they are not yet. A ring that asks for one to
        # write it reads it with the same answer.
        assert self.iotlb is not None
        for start, n in self.iotlb.lacking(miss.address, miss.size, write=miss.write):
            at, end = start, start + n
            while at < end:
                entry = self._find(at, own, write=miss.write)
                if entry is None:
                    stop = min(end, (at // self._grain + 1) * self._grain)
                    same = (e.address for e in self._asked if e.write == miss.write)
                    stop = min((address for address in same if at < address < stop), default=stop)
                    entry = _Asked(at, stop, miss.write)
                    self._asked[entry] = None
                    self._unsent[entry] = IotlbType.MISS
                elif entry.lost:
                    self._again(entry)
                yield entry
                at = entry.page_end

    def _find(self, address: int, own: Collection[_Asked], *, write: bool) -> _Asked | None:
        for entry in own if not write else ():
            if entry.covers(address, write=True):
                return entry
        return next((entry for entry in self._asked if entry.covers(address, write=write)), None)

    def _again(self, entry: _Asked) -> None:
        entry.sent = entry.read = entry.lost = False
        self._unsent[entry] = IotlbType.MISS

    def _complain(self) -> None:
        if self._channel is None and self._waits and not self._mute:
            log.warning("rings wait for translations, and there is no channel on which to ask for them")
            self._mute = True

    def _pass_over(self, turn: int) -> None:
        # The front-end answers in turn: where it has read what was sent before this one, it had no answer.
        if not (before := [entry for entry in self._asked if entry.sent and entry.turn < turn]):
            return
        self._look()
        for entry in before:
            if entry.read:
                entry.lost = True
                if entry.waiting:
                    self._again(entry)

    def _look(self) -> None:
        # A front-end that has read all, and does not answer some of it, has no answer to that.
        if self._channel is not None and self._channel.read:
            for entry in self._asked:
                entry.read = entry.sent

    def _leave(self, ring: Waiter) -> None:
        for entry in self._waits.pop(ring, ()):
            entry.waiting.discard(ring)

    def _remove(self, entry: _Asked) -> None:
        del self._asked[entry]
        self._unsent.pop(entry, None)

    def _forget_what_nobody_waits_for(self) -> None:
        for entry in [entry for entry in self._asked if not entry.waiting]:
            self._remove(entry)

    def _answer(self, start: int, end: int) -> tuple[list[Waiter], list[tuple[_Asked, list[Waiter]]]]:
        # What a new translation means for those who asked: rings to wake, and ranges that may not be used so.
        assert self.iotlb is not None
        served, denied = [], []
        for entry in [e for e in self._asked if e.address < end and start < e.end]:
            left = self.iotlb.lacking(entry.address, entry.end - entry.address, write=entry.write)
            if not left or left[0][0] != entry.address:
                served.append((entry, left))
            elif entry.sent and start <= entry.address:
                denied.append(entry)
        awake: dict[Waiter, None] = {}
        if turns := [entry.turn for entry, _ in served if entry.sent]:
            self._pass_over(min(turns))
        for entry, left in served:
            self._remove(entry)
            more = [piece for address, n in left for piece in self._entries(Miss(address, n, entry.write))]
            for ring in entry.waiting:
                waits = self._waits[ring]
                waits.discard(entry)
                waits.update(more)
                if not waits:
                    del self._waits[ring]
                    awake[ring] = None
            for piece in more:
                piece.waiting |= entry.waiting
        if served:
            # The answer to a request to read does not say that one to write is refused.
            return list(awake), []
        refused = []
        for entry in denied:
            self._remove(entry)
            rings = list(entry.waiting)
            for ring in rings:
                self._leave(ring)
            if rings and len(self._unsent) < _LIMIT:
                self._unsent[entry] = IotlbType.ACCESS_FAIL
            refused.append((entry, rings))
        return [], refused

    def _flush(self) -> None:
        channel = self._channel
        while channel is not None and self._unsent:
            entry, kind = next(iter(self._unsent.items()))
            if not channel.send(entry.message(kind), self.features, self.protocol_features):
                return
            del self._unsent[entry]
            if kind is IotlbType.MISS:
                self.asked += 1
                entry.sent, entry.turn, entry.since = True, self.asked, monotonic()


def _writes_first(miss: Miss) -> bool:
    return not miss.write
