# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The server for event loops: the same sessions and rings as in ``server``, run by callbacks of one loop."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from weakref import WeakKeyDictionary

from vhost.backend.dial import Dialer
from vhost.backend.listen import Source, check_place
from vhost.backend.offer import Offer, check_device
from vhost.backend.ring import Ring
from vhost.backend.server import ACCEPT_PAUSE, READ_SIZE, SEND_TIMEOUT, log_end, log_start
from vhost.backend.session import MakeMemory, Session
from vhost.devices.device import Device
from vhost.io.sockets import HasFileno, recv_fds, send_fds
from vhost.mem import Memory
from vhost.protocol import Quirks

__all__ = ("serve_async",)

log = logging.getLogger("vhost.backend")


class LoopRunner:
    """The runner of a ring in the running event loop; each callback serves a limited number of chains."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._kick = ring.kick.fd
        self._loop = asyncio.get_running_loop()
        if self._kick >= 0:
            self._loop.add_reader(self._kick, self._kicked)
        self._events = -1  # the descriptor of the data path, while it is watched
        self._stopped = False
        if ring.lane is not None:
            ring.lane.queue.check_calls()
        self._next: asyncio.Handle = self._loop.call_soon(self._look)

    def stop(self) -> None:
        """Call no more."""
        self._stopped = True
        self._next.cancel()
        self._watch(-1)
        if self._kick >= 0:
            self._loop.remove_reader(self._kick)

    def nudge(self) -> None:
        """Have a look at the ring again."""
        self._loop.call_soon_threadsafe(self._look)

    def _kicked(self) -> None:
        self._ring.kicked()
        self._look()

    def _look(self) -> None:
        if self._stopped:
            return  # it was called for before that, and the ring may have another runner now
        self._next.cancel()
        delay = self._ring.service()
        lane = self._ring.lane
        if self._ring.broken:
            self.stop()
        if self._ring.broken or lane is None:
            return
        # While it waits for a translation, nobody takes what this would tell.
        self._watch(-1 if lane.cdata.off else lane.event_fd)
        if delay is not None:
            self._next = self._loop.call_later(delay, self._look)

    def _watch(self, fd: int) -> None:
        if self._events >= 0 and fd != self._events:
            self._loop.remove_reader(self._events)
        if fd >= 0 and fd != self._events:
            self._loop.add_reader(fd, self._look)
        self._events = fd


async def serve_async(
    device: Device,
    path: str | os.PathLike[str] | None = None,
    *,
    connect: str | os.PathLike[str] | None = None,
    fd: int | None = None,
    sock: socket.socket | None = None,
    listen_fds: bool = False,
    stop: HasFileno | None = None,
    memory: MakeMemory = Memory,
    features: str = "",
    quirks: str = "",
) -> None:
    """Serve `device` in the running event loop; ends like :func:`vhost.serve`, or by cancellation.

    The device's methods are called in the loop's thread, so they should not block. Parameters and errors are
    those of :func:`vhost.serve`.
    """
    check_device(device)
    check_place(path, connect, fd, sock, listen_fds)
    offer, switches = Offer.of(device, features), Quirks.choose(quirks)

    def session() -> Session:
        return Session(device, LoopRunner, memory(), offer, switches)

    if connect is not None:
        await _until(_call(device, Dialer(connect, device.name), session), stop)
        return
    source = Source(path, fd=fd, sock=sock, listen_fds=listen_fds)
    try:
        await _until(_serve(device, source, session), stop)
    finally:
        source.close()


async def _until(service: Coroutine[None, None, None], stop: HasFileno | None) -> None:
    if stop is None:
        return await service
    serving = asyncio.ensure_future(service)
    stopped = False

    def end() -> None:
        nonlocal stopped
        stopped = True
        serving.cancel()

    watch = _Watch.of(stop.fileno())
    watch.add(end)
    try:
        await serving
    except asyncio.CancelledError:
        if not stopped:
            raise
    finally:
        watch.remove(end)


class _Watch:
    """Waits for a descriptor on behalf of all servers in a loop, which takes one reader for each."""

    @classmethod
    def of(cls, fd: int) -> "_Watch":
        """The one for `fd` in the running loop."""
        watches = _watches.setdefault(asyncio.get_running_loop(), {})
        if fd not in watches:
            watches[fd] = cls(fd, watches)
        return watches[fd]

    def __init__(self, fd: int, watches: "dict[int, _Watch]") -> None:
        self._fd, self._watches = fd, watches
        self._calls: set[Callable[[], None]] = set()

    def add(self, call: Callable[[], None]) -> None:
        """Call this once the descriptor is readable."""
        if not self._calls:
            asyncio.get_running_loop().add_reader(self._fd, self._ready)
        self._calls.add(call)

    def remove(self, call: Callable[[], None]) -> None:
        """Do not, any more."""
        self._calls.discard(call)
        if not self._calls and self._watches.pop(self._fd, None) is self:
            asyncio.get_running_loop().remove_reader(self._fd)

    def _ready(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        for call in self._calls:
            call()


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _Watch]] = WeakKeyDictionary()


async def _serve(device: Device, source: Source, make: Callable[[], Session]) -> None:
    if not source.listening:
        await _converse(device, source.sock, make)
        return
    log.info("%s: listening on %s", device.name, source)
    loop = asyncio.get_running_loop()
    while True:
        try:
            client, _ = await loop.sock_accept(source.sock)
        except OSError as error:
            log.error("%s: cannot accept a connection: %s", device.name, error)
            await asyncio.sleep(ACCEPT_PAUSE)
            continue
        client.setblocking(False)
        await _converse(device, client, make)


async def _call(device: Device, dialer: Dialer, make: Callable[[], Session]) -> None:
    while True:
        await asyncio.sleep(dialer.pause)
        if (sock := dialer.attempt()) is not None:
            dialer.ended(begun=await _converse(device, sock, make, quietly=dialer.vain))


async def _converse(
    device: Device, sock: socket.socket, make: Callable[[], Session], *, quietly: bool = False
) -> bool:
    # Whether the front-end began to use the device.
    log_start(device, quietly=quietly)
    session, failure = make(), None
    try:
        await _talk(session, sock)
    except Exception as error:
        failure = error
    finally:
        session.close()
        sock.close()
    log_end(device, failure, quietly=quietly and not session.begun)
    return session.begun


async def _talk(session: Session, sock: socket.socket) -> None:
    channel, watched, loop = session.channel, -1, asyncio.get_running_loop()
    try:
        while not session.over:
            if watched < 0 and (watched := channel.fileno()) >= 0:
                loop.add_reader(watched, channel.ready)
            await _hear(session, sock)
    finally:
        if watched >= 0:
            loop.remove_reader(watched)


async def _hear(session: Session, sock: socket.socket) -> None:
    await _ready(sock)
    try:
        data, fds = recv_fds(sock, READ_SIZE)
    except BlockingIOError:
        return
    for answer, riding in session.feed(data, fds):
        await _send(sock, answer, riding)


async def _send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    rest, deadline = memoryview(data), asyncio.get_running_loop().time() + SEND_TIMEOUT
    while rest:
        try:
            sent = send_fds(sock, rest, fds)
        except BlockingIOError:
            await _writable(sock, deadline)
            continue
        rest, fds = rest[sent:], []


async def _writable(sock: socket.socket, deadline: float) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            await _ready(sock, write=True)
    except TimeoutError:
        raise TimeoutError(f"the peer has read nothing for {SEND_TIMEOUT:g} s") from None


async def _ready(sock: socket.socket, *, write: bool = False) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add(sock, wake)
    try:
        await ready
    finally:
        remove(sock)
