# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Drives a vhost-user backend from an event loop: the same exchanges, run by asyncio."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

from vhost.protocol import Message, Payload, Quirks

from .exchange import Exchange, Step
from .frontend import FrontendBase
from .iommu import Iommu
from .negotiate import Options
from .queue import QueueBase
from .ring import Completion, Data, Ring
from .session import Session, Target

__all__ = ("connect_async", "opened_async", "AsyncFrontend", "AsyncQueue", "Runner")

_T = TypeVar("_T")


class Runner:
    """Runs exchanges in the running event loop, any number at a time.

    A loop knows one callback per descriptor, while several tasks may wait for the same queue and all of them
    for the end of the connection; so each descriptor has a list of who waits for it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[tuple[int, bool], set[asyncio.Future[int]]] = {}

    async def run(self, exchange: Exchange[_T], timeout: float | None) -> _T:
        """Run `exchange` to its end; what goes wrong in a step is raised inside the exchange.

        :param timeout: seconds for all of it, None for no limit.
        :raises TimeoutError: it took longer; the message says what was waited for.
        """
        deadline = None if timeout is None else self._loop.time() + timeout
        try:
            step = next(exchange)
            while True:
                try:
                    while not step.attempt():
                        await self._block(step, deadline, timeout)
                    # A peer that always has something to say must not keep the loop to itself. Between a step
                    # and its first attempt no other task may run: it could take away what the step waits for.
                    await asyncio.sleep(0)
                except BaseException as error:
                    step = exchange.throw(error)
                    continue
                step = next(exchange)
                if deadline is not None and self._loop.time() > deadline:
                    step = exchange.throw(step.late(timeout))
        except StopIteration as end:
            value: _T = end.value
            return value
        finally:
            exchange.close()

    async def _block(self, step: Step, deadline: float | None, timeout: float | None) -> None:
        left = None if deadline is None else deadline - self._loop.time()
        if left is not None and left < 0:
            raise step.late(timeout)
        if step.again is not None:
            left = step.again if left is None else min(left, step.again)
        ready: asyncio.Future[int] = self._loop.create_future()
        keys = [*((fd, False) for fd in step.reads), *((fd, True) for fd in step.writes)]
        try:
            for key in keys:
                self._watch(key, ready)
            await asyncio.wait((ready,), timeout=left)
        finally:
            for key in keys:
                self._unwatch(key, ready)
        if ready.done():
            step.woken(ready.result())

    def _watch(self, key: tuple[int, bool], ready: asyncio.Future[int]) -> None:
        fd, write = key
        if key not in self._waiting:
            self._waiting[key] = set()
            (self._loop.add_writer if write else self._loop.add_reader)(fd, self._fire, key)
        self._waiting[key].add(ready)

    def _unwatch(self, key: tuple[int, bool], ready: asyncio.Future[int]) -> None:
        fd, write = key
        waiting = self._waiting.get(key, set())
        waiting.discard(ready)
        if not waiting and self._waiting.pop(key, None) is not None:
            (self._loop.remove_writer if write else self._loop.remove_reader)(fd)

    def close(self) -> None:
        """Wake up whoever waits, to find that the descriptors are gone."""
        for key in list(self._waiting):
            waiting = self._waiting[key]
            self._fire(key)
            for ready in list(waiting):
                self._unwatch(key, ready)

    def _fire(self, key: tuple[int, bool]) -> None:
        for ready in self._waiting[key]:
            if not ready.done():
                ready.set_result(key[0])


async def connect_async(
    target: Target,
    *,
    features: int | None = None,
    protocol_features: int | None = None,
    queues: int = 1,
    queue_size: int = 128,
    ram_size: int = 64 << 20,
    timeout: float | None = 10.0,
    event_idx: bool = True,
    indirect: bool = True,
    slots: bool = False,
    regions: int = 1,
    packed: bool = False,
    in_order: bool = False,
    big_endian: bool = False,
    kick: bool = True,
    call: bool = True,
    inflight: bool | None = None,
    reconnect: float = 0.0,
    iommu: Iommu | None = None,
    quirks: str = "",
) -> "AsyncFrontend":
    """:func:`vhost.connect` for an event loop: the same parameters, the same exceptions."""
    options = Options(
        features=features,
        protocol_features=protocol_features,
        queues=queues,
        queue_size=queue_size,
        ram_size=ram_size,
        event_idx=event_idx,
        indirect=indirect,
        slots=slots,
        regions=regions,
        packed=packed,
        in_order=in_order,
        big_endian=big_endian,
        kick=kick,
        call=call,
        inflight=inflight,
        reconnect=reconnect,
        iommu=iommu,
        quirks=Quirks.choose(quirks),
    )
    return await opened_async(Session(target, options), timeout)


async def opened_async(session: Session, timeout: float | None) -> "AsyncFrontend":
    """The frontend of a session that is opened now, or closed if that fails."""
    runner = Runner()
    try:
        await runner.run(session.open(), timeout)
    except BaseException:
        session.close()
        raise
    return AsyncFrontend(session, timeout, runner)


class AsyncFrontend(FrontendBase):
    """A connected backend, from :func:`connect_async`; any number of tasks of one loop may use it at once."""

    def __init__(self, session: Session, timeout: float | None, runner: Runner) -> None:
        super().__init__(session, timeout)
        self._runner = runner
        # One request and its answer at a time on the socket; the queues need no such order.
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and release guest memory; tasks that still wait get an ``OSError``."""
        self._runner.close()
        super().close()

    async def request(
        self,
        readable: Data | Sequence[Data] = b"",
        writable: int | Sequence[int] = 0,
        *,
        queue: int = 0,
        timeout: float | None = None,
    ) -> bytes:
        """As :meth:`Frontend.request`; many may be in flight, each in its own task."""
        request = self._session.request(readable, writable, queue)
        return await self._runner.run(request, self._timeout if timeout is None else timeout)

    def queue(self, index: int) -> "AsyncQueue":
        """The queue `index`, to have many requests in flight."""
        return AsyncQueue(self._session.ring(index), self._timeout, self._runner)

    async def config(self, offset: int = 0, size: int = 256) -> bytes:
        """As :meth:`Frontend.config`."""
        return await self._alone(self._session.config(offset, size))

    async def set_config(self, offset: int, data: bytes, *, migration: bool = False) -> None:
        """As :meth:`Frontend.set_config`."""
        await self._alone(self._session.set_config(offset, data, migration=migration))

    async def stop(self, index: int) -> int:
        """As :meth:`Frontend.stop`."""
        return await self._alone(self._session.stop(index))

    async def start(self, index: int, base: int | None = None) -> None:
        """As :meth:`Frontend.start`."""
        await self._alone(self._session.start(index, base))

    async def reset(self) -> None:
        """As :meth:`Frontend.reset`."""
        await self._alone(self._session.reset())

    async def exchange(self, message: Message, fds: Sequence[int] = ()) -> Payload | None:
        """As :meth:`Frontend.exchange`."""
        return await self._alone(self._session.exchange(message, fds))

    async def reconnect(
        self, target: Target | None = None, *, seconds: float = 0.0, resubmit: bool | None = None
    ) -> None:
        """As :meth:`Frontend.reconnect`; tasks that wait for requests in flight may go on waiting."""
        await self._alone(self._session.reconnecting.run(target, patience=seconds, resubmit=resubmit))

    async def log_start(self) -> None:
        """As :meth:`Frontend.log_start`."""
        await self._alone(self._session.log_start())

    async def log_stop(self) -> None:
        """As :meth:`Frontend.log_stop`."""
        await self._alone(self._session.log_stop())

    async def iotlb_invalidate(self, iova: int, size: int) -> None:
        """As :meth:`Frontend.iotlb_invalidate`."""
        await self._alone(self._session.invalidate(iova, size))

    async def iotlb_update(self, iova: int) -> None:
        """As :meth:`Frontend.iotlb_update`."""
        await self._alone(self._session.translate(iova))

    async def _alone(self, exchange: Exchange[_T]) -> _T:
        async with self._turn:
            return await self._runner.run(exchange, self._timeout)


class AsyncQueue(QueueBase):
    """A queue of an :class:`AsyncFrontend`."""

    def __init__(self, ring: Ring, timeout: float | None, runner: Runner) -> None:
        super().__init__(ring, timeout)
        self._runner = runner

    async def wait(self, token: int | None = None, *, timeout: float | None = None) -> Completion:
        """As :meth:`FrontendQueue.wait`."""
        return await self._runner.run(
            self._ring.completion(token), self._timeout if timeout is None else timeout
        )

    async def make_room(self, *, timeout: float | None = None) -> bool:
        """As :meth:`FrontendQueue.make_room`."""
        return await self._runner.run(self._ring.room(), self._timeout if timeout is None else timeout)
