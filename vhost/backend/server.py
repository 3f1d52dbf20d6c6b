# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The blocking server: one socket, one front-end after the other, one thread for each running ring."""

import logging
import os
import select
import socket
import time
from collections.abc import Callable

from vhost.backend.dial import Dialer
from vhost.backend.listen import Source, check_place
from vhost.backend.offer import Offer, check_device
from vhost.backend.session import MakeMemory, Session
from vhost.backend.worker import Polling, Workers
from vhost.devices.device import Device
from vhost.errors import RemoteProtocolError
from vhost.io.sockets import HasFileno, wait
from vhost.io.stream import Stream
from vhost.mem import Memory
from vhost.protocol import Quirks

__all__ = ("serve",)

log = logging.getLogger("vhost.backend")

# Bytes of one read: more than the largest message.
READ_SIZE = 8192
# Seconds a front-end may leave an answer unread.
SEND_TIMEOUT = 10.0
# Seconds until the next try after the system could not accept a connection (out of descriptors, mostly).
ACCEPT_PAUSE = 1.0


def serve(
    device: Device,
    path: str | os.PathLike[str] | None = None,
    *,
    connect: str | os.PathLike[str] | None = None,
    fd: int | None = None,
    sock: socket.socket | None = None,
    listen_fds: bool = False,
    stop: HasFileno | None = None,
    memory: MakeMemory = Memory,
    polling: Polling | None = None,
    features: str = "",
    quirks: str = "",
) -> None:
    """Serve `device` to the front-ends that connect, one after the other, until `stop`.

    Give one of `path` (a Unix socket to create), `connect` (the socket of a front-end that listens), `fd` or
    `sock` (a listening or a connected socket, taken over) and `listen_fds` (the socket from systemd). With a
    connected socket this returns when its peer has gone; with `connect` it connects again, and goes on
    trying, with pauses that grow to seconds, while nobody listens there. Front-ends that come while one is
    served wait in the backlog. The device is not closed at the end.

    :param stop: something with a descriptor that becomes readable when the server is to end, such as
        :class:`vhost.backend.Stop`.
    :param memory: makes the guest memory of each connection, to choose options that this build of it has.
    :param polling: how the threads that serve rings wait, how many there are and where they run; None:
        defaults.
    :param features: what to change of the features on offer, by name: ``"+iommu,-packed"``. Names are those
        of the specification in lower case with hyphens, shorter ones for rings (``packed``, ``indirect``,
        ``event-idx``, ``in-order``, ``iommu``, ``log``), and ``protocol.inflight-shmfd`` and the like.
    :param quirks: rows of :class:`vhost.protocol.Quirks` to switch on for these front-ends, or off with a
        minus in front: ``"packed-base-16"``.
    :raises OSError: the socket cannot be had; `connect` is no socket, or not one for this user.
    :raises DeviceError: the device's numbers are out of range, or it cannot do what `features` ask for.
    :raises ValueError: not exactly one place was given, or `features` or `quirks` name what is none.
    """
    check_device(device)
    check_place(path, connect, fd, sock, listen_fds)
    offer, switches = Offer.of(device, features), Quirks.choose(quirks)

    def session(workers: Workers) -> Session:
        return Session(device, workers, memory(), offer, switches)

    conversation = _Conversation(device, stop, polling, session)
    if connect is not None:
        _call(conversation, Dialer(connect, device.name))
        return
    source = Source(path, fd=fd, sock=sock, listen_fds=listen_fds)
    try:
        if source.listening:
            log.info("%s: listening on %s", device.name, source)
            _accept(conversation, source.sock)
        else:
            conversation.stream.adopt(source.sock.detach())
            conversation.hold()
    finally:
        conversation.stream.close()
        source.close()


def _accept(conversation: "_Conversation", listener: socket.socket) -> None:
    device, stop = conversation.device, conversation.stop
    while True:
        conversation.prepare()
        try:
            if not conversation.stream.accept(listener):
                return
        except OSError as error:
            log.error("%s: cannot accept a connection: %s", device.name, error)
            _pause(stop, ACCEPT_PAUSE)
        else:
            conversation.hold()


def _call(conversation: "_Conversation", dialer: Dialer) -> None:
    while _pause(conversation.stop, dialer.pause):
        if (sock := dialer.attempt()) is not None:
            conversation.stream.adopt(sock.detach())
            dialer.ended(begun=conversation.hold(quietly=dialer.vain))


def _pause(stop: HasFileno | None, seconds: float) -> bool:
    # Whether to go on after it.
    if stop is None:
        time.sleep(seconds)
        return True
    try:
        wait(stop, select.POLLIN, timeout=seconds)
    except TimeoutError:
        return True
    return False


class _Conversation:
    # With one front-end after the other. What it takes is made before a front-end comes, who finds it ready.
    def __init__(
        self,
        device: Device,
        stop: HasFileno | None,
        polling: Polling | None,
        make: Callable[[Workers], Session],
    ) -> None:
        self.device, self.stop = device, stop
        self.stream = Stream(READ_SIZE, stop)
        self._polling, self._make = polling, make
        self._next: tuple[Session, Workers] | None = None

    def prepare(self) -> tuple[Session, Workers]:
        if self._next is None:
            workers = Workers(self.device.threads or self.device.num_queues, self._polling)
            self._next = self._make(workers), workers
        return self._next

    def hold(self, *, quietly: bool = False) -> bool:
        # Whether the front-end began to use the device.
        device, failure = self.device, None
        log_start(device, quietly=quietly)
        (session, workers), self._next = self.prepare(), None
        try:
            self._talk(session)
        except Exception as error:
            failure = error
        finally:
            session.close()
            workers.close()
            self.stream.close()
        log_end(device, failure, quietly=quietly and not session.begun)
        return session.begun

    def _talk(self, session: Session) -> None:
        receive, send = self.stream.receive, self.stream.send
        while not session.over and (read := receive(session.standing, session.channel)) is not None:
            for answer, riding in session.feed(*read):
                if not send(answer, riding, timeout=SEND_TIMEOUT):
                    return


def log_start(device: Device, *, quietly: bool) -> None:
    """Say that there is a connection; to one that may be as much in vain as the last one, in debug logs."""
    log.log(logging.DEBUG if quietly else logging.INFO, "%s: front-end connected", device.name)


def log_end(device: Device, error: Exception | None, *, quietly: bool) -> None:
    """Say how a connection ended, once all it held is released: in order, by the peer, by our fault."""
    if error is None:
        log.log(logging.DEBUG if quietly else logging.INFO, "%s: connection ended", device.name)
    elif isinstance(error, (RemoteProtocolError, TimeoutError)):
        log.warning("%s: connection dropped: %s", device.name, error)
    elif isinstance(error, OSError):
        log.info("%s: connection lost: %s", device.name, error)
    else:
        log.error("%s: connection dropped by a fault of the back-end", device.name, exc_info=error)
