# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Gets a session back to a backend that went away: the same features, memory and rings, at another socket.

What was in flight stays so: a split ring goes on at the used index in its memory, a packed one at the
position its driver has reached, and the inflight region tells the backend which requests are to be answered.
"""

import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vhost.errors import LocalProtocolError, VirtqueueError
from vhost.io import Listener

from .exchange import Exchange, Until, pause
from .link import Link
from .negotiate import negotiate

if TYPE_CHECKING:
    from .session import Session, Target

__all__ = ("Reconnect",)

# Seconds between attempts at a backend that goes away again.
_PAUSE: Final = 0.02


class Reconnect:
    """The way back to a backend of `session`; one flow at a time goes it, others wait for that one."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._under_way = False
        self._closed = False
        self._before: list[Link] = []  # links that have ended

    def settled(self) -> Exchange[None]:
        """Wait until no reconnect is under way."""
        if self._under_way:
            yield Until(lambda: not self._under_way, "the connection to be there again", again=_PAUSE)

    def revive(self, link: Link) -> Exchange[bool]:
        """Whether there is another link now in place of `link`, which has ended.

        :raises OSError: there was to be one, but nobody answers.
        """
        session, waited = self._session, self._under_way
        yield from self.settled()
        # If somebody tried already, and in vain, that is an answer.
        wanted = session.options.reconnect and session.place is not None and not self._closed
        if session.link is link and wanted and not waited:
            yield from self.run(patience=session.options.reconnect)
        return session.link is not link and not session.link.ended

    def run(
        self,
        target: "Target | None" = None,
        *,
        patience: float = 0.0,
        resubmit: bool | None = None,
    ) -> Exchange[None]:
        """Reconnect, see :meth:`vhost.frontend.Frontend.reconnect`."""
        yield from self.settled()
        session = self._session
        self._check_in_flight(resubmit)
        there: Target | Listener | None = session.place if target is None else target
        if there is None:
            raise ValueError("the session has a connected socket, not a path; reconnect needs a target")
        until = time.monotonic() + patience
        self._under_way = True
        session.link.abandon("this side is reconnecting")
        # Open until there is another one: a new socket could get its number, for which others may wait still.
        self._before.append(session.link)
        try:
            while True:
                try:
                    # Without patience, a backend that is to connect has the time of the whole call.
                    limit = until if patience or not isinstance(there, Listener) else None
                    yield from self._attempt(there, limit, resubmit)
                    self._close_before()
                    return
                except ConnectionError:
                    if isinstance(there, socket.socket) or time.monotonic() >= until or self._closed:
                        raise
                yield from pause(_PAUSE, "the backend to be there again")
        finally:
            self._under_way = False

    def _close_before(self) -> None:
        for link in self._before:
            link.close()
        self._before.clear()

    def _check_in_flight(self, resubmit: bool | None) -> None:
        session = self._session
        for ring in session.rings:
            ring.collect()
        flying = sum(ring.in_flight for ring in session.rings if ring.running and not ring.broken)
        if flying and session.inflight is None and resubmit is None:
            raise VirtqueueError(
                f"{flying} requests are in flight and no inflight region says which of them are done; "
                "reconnect(resubmit=True) to run all of them again, resubmit=False to forget them"
            )

    def _attempt(
        self, target: "Target | Listener", until: float | None, resubmit: bool | None
    ) -> Exchange[None]:
        session = self._session
        before = session.negotiated
        link = session.link = session.aim(target)
        try:
            yield from session.dial(until)
            wanted = replace(
                session.options, features=before.features, protocol_features=before.protocol_features
            )
            try:
                session.negotiated = yield from negotiate(link, wanted)
            except LocalProtocolError as error:
                raise LocalProtocolError(
                    f"the backend offers less than it did before, so the session cannot go on: {error}"
                ) from error
            yield from session.introduce()
            if session.inflight is not None:
                yield from session.inflight.hand_over(link)
            if session.log is not None and any(ring.vring.logged for ring in session.rings):
                yield from session.log_on()
            for ring in session.rings:
                ring.reattach(link, recorded=session.inflight is not None, resubmit=resubmit)
                if ring.running:
                    yield from session.serve(ring)
            yield from session.make_sure()
        except BaseException as error:
            link.abandon(f"the attempt to reconnect ended with {type(error).__name__}: {error}")
            link.close()
            raise

    def close(self) -> None:
        """No further attempts."""
        self._closed = True
        self._close_before()
