# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The same exchanges in an event loop: many tasks, cancelled ones, and backends that fail."""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import pytest

import vhost
from tests.frontend.fake import Fake
from tests.frontend.served import Reverse, served
from tests.frontend.test_link import hang_up, refuse, silence
from vhost.errors import RefusedError, RemoteProtocolError, VirtqueueError
from vhost.protocol import GetFeatures, Request, SetConfig, SetMemTable, SetOwner

pytestmark = pytest.mark.usefixtures("no_leaks")

T = TypeVar("T")


def run(main: Coroutine[object, object, T]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(30):
            return await main

    return asyncio.run(limited())


def test_requests_of_many_tasks(backend: socket.socket) -> None:
    async def main() -> None:
        async with await vhost.connect_async(backend, queues=2, queue_size=16) as device:
            data = [n.to_bytes(4, "little") for n in range(200)]
            answers = await asyncio.gather(
                *(device.request(piece, 4, queue=n % 2) for n, piece in enumerate(data)),
                *(device.config(0, 4) for _ in range(5)),
            )
            assert answers == [piece[::-1] for piece in data] + [bytes(4)] * 5

    run(main())


def test_who_takes_a_completion_wakes_the_others(backend: socket.socket) -> None:
    # Two that wait for the same queue, run by hand: the first takes the call that was for both.
    with vhost.connect(backend) as device:
        ring = device._session.ring(0)
        first, second = ring.arrival(), ring.arrival()
        one, other = next(first), next(second)
        ring.submit([b"x"], [1])
        while not one.attempt():
            pass
        with pytest.raises(StopIteration):
            next(first)
        assert other.attempt()
        with pytest.raises(StopIteration):
            next(second)


def test_a_queue(backend: socket.socket) -> None:
    async def main() -> None:
        async with await vhost.connect_async(backend) as device:
            queue = device.queue(0)
            tokens = [queue.submit(bytes([n]), 1) for n in range(10)]
            assert (await queue.wait(tokens[5])).data == b"\5"
            assert [(await queue.wait()).token for _ in range(9)] == tokens[:5] + tokens[6:]
            queue.submit(b"x")
            assert await queue.make_room()
            assert len(queue.completed()) == 1
            assert not await queue.make_room()

    run(main())


def test_all_that_is_in_flight_can_be_waited_for(backend: socket.socket) -> None:
    async def main() -> None:
        async with await vhost.connect_async(backend) as device:
            queue = device.queue(0)
            tokens = [queue.submit(bytes([n]), 1, publish=False) for n in range(3)]
            while await queue.make_room():
                pass
            assert queue.in_flight == 3
            assert [(await queue.wait()).token for _ in range(queue.in_flight)] == tokens
            assert not queue.in_flight

    run(main())


def test_stop_start_and_configuration(backend: socket.socket, device: Reverse) -> None:
    async def main() -> None:
        async with await vhost.connect_async(backend) as frontend:
            await frontend.request(b"x", 1)
            assert await frontend.stop(0) == 1
            await frontend.start(0)
            assert await frontend.request(b"ab", 2) == b"ba"
            await frontend.set_config(0, b"hello")
            assert bytes(device.space[:5]) == b"hello"
            assert await frontend.exchange(GetFeatures()) is not None
            await frontend.reset()
            await frontend.start(0)
            assert await frontend.request(b"cd", 2) == b"dc"

    run(main())


def test_a_broken_ring_reaches_all_who_wait(backend: socket.socket) -> None:
    async def main() -> None:
        async with await vhost.connect_async(backend) as device:
            results = await asyncio.gather(
                *(device.request(b"break", 1) for _ in range(3)), return_exceptions=True
            )
            assert [type(result) for result in results] == [VirtqueueError] * 3

    run(main())


class Keeper(vhost.Device):
    """Never takes a request."""

    name = "keeper"

    def handle(self, queue: vhost.Queue) -> None:
        pass


@pytest.mark.parametrize("how", ["stop", "reset"])
def test_the_end_of_a_ring_reaches_all_who_wait(unix_build: None, how: str) -> None:
    async def main() -> None:
        with served(Keeper()) as backend:
            async with await vhost.connect_async(backend, timeout=None) as device:
                tasks = [asyncio.create_task(device.request(b"abc", 3)) for _ in range(3)]
                await asyncio.sleep(0.05)
                await (device.stop(0) if how == "stop" else device.reset())
                async with asyncio.timeout(5):
                    results = await asyncio.gather(*tasks, return_exceptions=True)
                assert [type(result) for result in results] == [VirtqueueError] * 3, results

    run(main())


def test_a_path(tmp_path: Path) -> None:
    path = tmp_path / "busy.sock"
    with pytest.raises(FileNotFoundError, match=r"busy\.sock"):
        run(vhost.connect_async(path))
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        with pytest.raises(TimeoutError, match=r"busy\.sock to accept"):
            run(vhost.connect_async(path, timeout=0.05))

        async def two() -> None:
            # Connected as soon as there is room, and the event loop runs meanwhile.
            task = asyncio.create_task(vhost.connect_async(path, timeout=10))
            await asyncio.sleep(0)
            listener.accept()[0].close()
            listener.setblocking(False)
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            client.close()
            with pytest.raises(ConnectionResetError, match="GET_FEATURES"):
                await task

        run(two())


def test_refused() -> None:
    with Fake(script={SetMemTable: refuse}) as fake, pytest.raises(RefusedError, match="SET_MEM_TABLE"):
        run(vhost.connect_async(fake.peer))


def test_silence() -> None:
    with Fake(script={SetOwner: silence}) as fake, pytest.raises(TimeoutError, match="answer to SET_OWNER"):
        run(vhost.connect_async(fake.peer, timeout=0.05))


def test_closed() -> None:
    with Fake(script={SetOwner: hang_up}) as fake, pytest.raises(ConnectionResetError, match="SET_OWNER"):
        run(vhost.connect_async(fake.peer))


def test_cancelled_while_connecting() -> None:
    async def main(fake: Fake, silent: asyncio.Event) -> None:
        task = asyncio.create_task(vhost.connect_async(fake.peer))
        await silent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def with_fake() -> None:
        silent, loop = asyncio.Event(), asyncio.get_running_loop()
        with Fake(script={SetOwner: lambda *_: loop.call_soon_threadsafe(silent.set)}) as fake:
            await main(fake, silent)

    run(with_fake())


def test_cancelled_exchange_ends_the_conversation() -> None:
    async def main() -> None:
        silent, loop = asyncio.Event(), asyncio.get_running_loop()
        with Fake(script={SetConfig: lambda *_: loop.call_soon_threadsafe(silent.set)}) as fake:
            async with await vhost.connect_async(fake.peer) as device:
                task = asyncio.create_task(device.set_config(0, b"x"))
                await silent.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                with pytest.raises(ConnectionAbortedError, match="SET_CONFIG ended with Cancelled"):
                    await device.config(0, 1)

    run(main())


def test_cancelled_request_leaves_the_others_alone() -> None:
    async def main() -> None:
        with Fake() as fake:
            async with await vhost.connect_async(fake.peer) as device:
                free = device.ram.available
                tasks = [asyncio.create_task(device.request(b"abc", 8)) for _ in range(2)]
                while device.queue(0).in_flight < 2:
                    await asyncio.sleep(0)
                tasks[0].cancel()
                first, second = fake.get("<HH", fake.address[0].available + 4)
                fake.use(first, 8)
                fake.use(second, 3)
                assert await tasks[1] == b"\xff" * 3
                assert tasks[0].cancelled()
                assert device.ram.available == free

    run(main())


def test_a_request_is_not_taken_in_by_the_answer_to_something_else() -> None:
    async def main() -> None:
        half, rest = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def halves(fake: Fake, request: Request) -> None:
            answer = fake.encode_ack(request)
            fake.write(answer[:7])
            loop.call_soon_threadsafe(half.set)
            assert rest.wait(20)
            fake.write(answer[7:])

        with Fake(script={SetConfig: halves}) as fake:
            async with await vhost.connect_async(fake.peer) as device:
                request = asyncio.create_task(device.request(b"abc", 8))
                asking = asyncio.create_task(device.set_config(0, b"x"))
                await half.wait()
                for _ in range(20):  # turns in which the socket is readable
                    await asyncio.sleep(0)
                rest.set()
                await asking
                fake.use(fake.get("<H", fake.address[0].available + 4)[0], 3)
                assert await request == b"\xff" * 3

    run(main())


def test_gone_with_requests_in_flight() -> None:
    async def main() -> None:
        with Fake() as fake:
            async with await vhost.connect_async(fake.peer, queues=1) as device:
                tasks = [asyncio.create_task(device.request(b"abc", 8)) for _ in range(3)]
                while device.queue(0).in_flight < 3:
                    await asyncio.sleep(0)
                fake.hang_up()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert [type(result) for result in results] == [ConnectionResetError] * 3

    run(main())


def test_an_answer_that_nobody_asked_for() -> None:
    async def main() -> None:
        with Fake() as fake:
            async with await vhost.connect_async(fake.peer) as device:
                fake.write(b"\1")
                with pytest.raises(RemoteProtocolError, match="an answer to nothing"):
                    await device.request(b"abc", 8)

    run(main())


def test_closed_under_those_who_wait() -> None:
    async def main() -> None:
        with Fake(script={SetConfig: silence}) as fake:
            device = await vhost.connect_async(fake.peer, timeout=None)
            tasks = [
                asyncio.create_task(device.request(b"abc", 8)),
                asyncio.create_task(device.set_config(0, b"x")),
            ]
            while SetConfig not in map(type, fake.seen):
                await asyncio.sleep(0)
            device.close()
            async with asyncio.timeout(5):
                results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [ConnectionAbortedError] * 2, results

    run(main())
