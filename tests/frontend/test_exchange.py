# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Steps and the two that run them, without a backend."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vhost.frontend.aio import Runner
from vhost.frontend.exchange import Exchange, Readable, Receive, Send, Step
from vhost.frontend.link import Link
from vhost.frontend.wait import wait
from vhost.io import close_fds
from vhost.protocol import GetFeatures

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def pair(no_leaks: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        yield one, other


def run_blocking(exchange: Exchange[Any], timeout: float | None) -> object:
    return wait(exchange, timeout)


def run_in_a_loop(exchange: Exchange[Any], timeout: float | None) -> object:
    async def main() -> object:
        return await Runner().run(exchange, timeout)

    return asyncio.run(main())


class Done(Step):
    """A step that is always done at once."""

    def attempt(self) -> bool:
        return True


class Failing(Step):
    def attempt(self) -> bool:
        raise KeyError("failed")


BOTH = pytest.mark.parametrize("run", [run_blocking, run_in_a_loop])
Run = Callable[[Exchange[Any], float | None], object]


@BOTH
def test_value(run: Run) -> None:
    def exchange() -> Exchange[object]:
        yield Done("a")
        yield Done("b")
        return "value"

    assert run(exchange(), None) == "value"


@BOTH
def test_a_failure_is_raised_inside(run: Run) -> None:
    def exchange() -> Exchange[object]:
        try:
            yield Failing("a")
        except KeyError as error:
            yield Done("to tidy up")
            return error.args
        return None

    assert run(exchange(), None) == ("failed",)


@BOTH
def test_steps_without_end_do_not_get_past_the_deadline(run: Run) -> None:
    def exchange() -> Exchange[object]:
        while True:
            yield Done("never")

    with pytest.raises(TimeoutError, match=r"waited 0\.05 s for never"):
        run(exchange(), 0.05)


@BOTH
def test_an_exchange_that_fails_is_closed(run: Run) -> None:
    ended = []

    def exchange() -> Exchange[None]:
        try:
            yield Failing("a")
        finally:
            ended.append(True)

    with pytest.raises(KeyError):
        run(exchange(), None)
    assert ended == [True]


def test_other_tasks_run_meanwhile() -> None:
    def busy() -> Exchange[object]:
        for _ in range(100):
            yield Done("")
        return turns

    turns = 0

    async def main() -> None:
        nonlocal turns
        task = asyncio.create_task(Runner().run(busy(), None))
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns >= 100

    asyncio.run(main())


def test_who_was_woken_looks_even_if_another_was_quicker() -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    class Quick(Runner):
        def _fire(self, key: tuple[int, bool]) -> None:
            super()._fire(key)
            os.eventfd_read(event)

    def exchange() -> Exchange[object]:
        step = Readable([event], "the event")
        yield step
        return step.ready

    async def main() -> None:
        task = asyncio.create_task(Quick().run(exchange(), 10))
        await asyncio.sleep(0)
        os.eventfd_write(event, 1)
        assert await task == {event}

    try:
        asyncio.run(main())
    finally:
        os.close(event)


def test_descriptors_ride_once(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    data = os.urandom(1 << 20)
    step = Send(one, data, [0], "much")
    assert not step.attempt()
    got, fds = bytearray(), []
    while len(got) < len(data):
        receive = Receive(other, 65536, "")
        assert receive.attempt()
        got += receive.data
        fds += receive.fds
        if len(got) < len(data):
            step.attempt()
    close_fds(fds)
    assert (len(fds), bytes(got)) == (1, data)


def test_descriptors_of_an_answer_nobody_waits_for_any_more(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, other = pair
    link = Link(one)
    exchange = link.exchange(GetFeatures())
    assert next(exchange).attempt()
    socket.send_fds(other, [b"\1"], [0, 0])
    receive = next(exchange)
    assert receive.attempt()
    with pytest.raises(asyncio.CancelledError):
        exchange.throw(asyncio.CancelledError())
    link.close()


def test_a_check_leaves_an_answer_to_the_one_who_asked(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    link = Link(one)
    exchange = link.exchange(GetFeatures())
    assert next(exchange).attempt()
    receive = next(exchange)
    other.send(b"\1")
    link.check()
    assert receive.attempt()
    exchange.close()
    with pytest.raises(ConnectionResetError, match="GET_FEATURES ended with GeneratorExit"):
        link.check()
    link.close()
