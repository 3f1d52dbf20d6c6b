# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The blocking server: one socket, one front-end after the other, one thread for each running ring."""

import logging
import os
import select
import socket
import time

from vhost.backend.listen import Source
from vhost.backend.offer import check_device
from vhost.backend.session import MakeMemory, Session
from vhost.backend.worker import Polling, Workers
from vhost.devices.device import Device
from vhost.errors import RemoteProtocolError
from vhost.io.receiver import Receiver
from vhost.io.sockets import HasFileno, send_all, wait
from vhost.mem import Memory

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
    fd: int | None = None,
    sock: socket.socket | None = None,
    listen_fds: bool = False,
    stop: HasFileno | None = None,
    memory: MakeMemory = Memory,
    polling: Polling | None = None,
) -> None:
    """Serve `device` to the front-ends that connect, one after the other, until `stop`.

    Give one of `path` (a Unix socket to create), `fd` or `sock` (a listening or a connected socket, taken
    over) and `listen_fds` (the socket from systemd). With a connected socket this returns when its peer has
    gone. Front-ends that come while one is served wait in the backlog. The device is not closed at the end.

    :param stop: something with a descriptor that becomes readable when the server is to end, such as
        :class:`vhost.backend.Stop`.
    :param memory: makes the guest memory of each connection, to choose options that this build of it has.
    :param polling: how the threads that serve rings wait, how many there are and where they run; None:
        defaults.
    :raises OSError: the socket cannot be had.
    :raises DeviceError: the device's numbers are out of range.
    """
    check_device(device)
    source = Source(path, fd=fd, sock=sock, listen_fds=listen_fds)
    try:
        if source.listening:
            log.info("%s: listening on %s", device.name, source)
            _accept(device, source.sock, stop, memory, polling)
        else:
            _converse(device, source.sock, stop, memory, polling)
    finally:
        source.close()


def _accept(
    device: Device,
    listener: socket.socket,
    stop: HasFileno | None,
    memory: MakeMemory,
    polling: Polling | None,
) -> None:
    while wait(listener, select.POLLIN, stop=stop):
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            continue  # it went away again
        except OSError as error:
            log.error("%s: cannot accept a connection: %s", device.name, error)
            _pause(stop)
            continue
        client.setblocking(False)
        _converse(device, client, stop, memory, polling)


def _pause(stop: HasFileno | None) -> None:
    if stop is None:
        time.sleep(ACCEPT_PAUSE)
    else:
        try:
            wait(stop, select.POLLIN, timeout=ACCEPT_PAUSE)
        except TimeoutError:
            pass


def _converse(
    device: Device,
    sock: socket.socket,
    stop: HasFileno | None,
    memory: MakeMemory,
    polling: Polling | None,
) -> None:
    log.info("%s: front-end connected", device.name)
    workers = Workers(device.num_queues, polling)
    session, failure = Session(device, workers, memory()), None
    try:
        _talk(session, sock, stop)
    except Exception as error:
        failure = error
    finally:
        session.close()
        workers.close()
        sock.close()
    log_end(device, failure)


def _talk(session: Session, sock: socket.socket, stop: HasFileno | None) -> None:
    receiver = Receiver(sock, READ_SIZE, stop)
    while not session.over and (read := receiver.receive(session.standing)) is not None:
        for answer, riding in session.feed(*read):
            if not send_all(sock, answer, riding, timeout=SEND_TIMEOUT, stop=stop):
                return


def log_end(device: Device, error: Exception | None) -> None:
    """Say how a connection ended, once all it held is released: in order, by the peer, by our fault."""
    if error is None:
        log.info("%s: connection ended", device.name)
    elif isinstance(error, (RemoteProtocolError, TimeoutError)):
        log.warning("%s: connection dropped: %s", device.name, error)
    elif isinstance(error, OSError):
        log.info("%s: connection lost: %s", device.name, error)
    else:
        log.error("%s: connection dropped by a fault of the back-end", device.name, exc_info=error)
