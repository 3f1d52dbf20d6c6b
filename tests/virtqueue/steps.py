# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs a device one instruction at a time, in a child, and looks at what it has written after each of them.

A program of its own, since it forks and traces: ``steps.py killed|logged KIND SEED NEXT``, where NEXT
is for how many of the states the one that comes after is run so too. What a process leaves behind that
is killed is what shared memory holds then, so each state of it is given to another device, as if that one
came after.
"""

import ctypes
import gc
import mmap
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from vhost._core import lib as core
from vhost.errors import VirtqueueError
from vhost.mem import DirtyLog, InflightRegion, Memory, RegionSpec
from vhost.virtqueue import DriverQueue, Queue, RingLayout
from vhost.virtqueue import queue as queue_module

PAGE = 4096
BASE = 0x100000
# Where things are in guest memory: a page each, so that a dirty log tells them apart.
DESC, AVAIL, USED, TABLES, DATA = (BASE + PAGE * page for page in range(5))
TABLE_LEN = 4
SLOT = 64  # bytes of guest memory for each request
REQUESTS = 512
SIZE = DATA - BASE + SLOT * REQUESTS

KINDS: dict[str, dict[str, Any]] = {
    "split": {"size": 8},
    "big-endian": {"size": 8, "big_endian": True},
    "packed": {"size": 7, "packed": True},
    "split-in-order": {"size": 8, "in_order": True},
    "packed-in-order": {"size": 7, "packed": True, "in_order": True},
    "split-indirect": {"size": 4, "indirect": True},
    "packed-indirect": {"size": 5, "packed": True, "indirect": True},
}


class World:
    """Guest memory with a ring, its driver, and an inflight region; the same for the same seed."""

    def __init__(self, kind: str, seed: int) -> None:
        self.options = {"size": 8, "packed": False, "in_order": False, "big_endian": False, "indirect": False}
        self.options |= KINDS[kind]
        self.rng = random.Random(f"{kind} {seed}")
        packed = self.options["packed"]
        self.layout = RingLayout(self.options["size"], packed)
        self.fd = os.memfd_create("steps")
        os.ftruncate(self.fd, SIZE)
        self.ram = mmap.mmap(self.fd, SIZE)
        self.memory = Memory()
        self.memory.replace([(RegionSpec(BASE, SIZE, BASE, 0), os.dup(self.fd))])
        self.region, self.region_fd = InflightRegion.create(1, self.layout.size, packed=packed)
        self.record = mmap.mmap(self.region_fd, self.region.spec.size)
        view = memoryview(self.ram)
        self.driver = DriverQueue(
            self.layout,
            *(
                view[at - BASE : at - BASE + n]
                for at, n in (
                    (DESC, self.layout.descriptor),
                    (AVAIL, self.layout.avail),
                    (USED, self.layout.used),
                )
            ),
            in_order=self.options["in_order"],
            big_endian=self.options["big_endian"],
            check=True,
            tables=view[TABLES - BASE : DATA - BASE] if self.options["indirect"] else None,
            tables_gpa=TABLES,
            table_len=TABLE_LEN,
        )
        self.flying: dict[int, int] = {}  # ids to requests
        self.sent = 0
        self.order: list[int] = []  # requests as they were offered

    def start(self, base: int | None = None, *, inflight: bool = True) -> Queue:
        layout = self.layout
        lengths = (layout.descriptor, layout.avail, layout.used)
        return Queue(
            0,
            layout,
            self.memory,
            tuple(self.memory.ring(at, n) for at, n in zip((DESC, AVAIL, USED), lengths, strict=True)),  # type: ignore[arg-type]
            base=self.driver.base if base is None else base,
            indirect=self.options["indirect"],
            in_order=self.options["in_order"],
            big_endian=self.options["big_endian"],
            inflight=self.region.part(0, layout.size, packed=layout.packed) if inflight else 0,
        )

    # ---- the driver ----

    def offer(self) -> bool:
        """Another request, of random shape: its number, which comes back; false if the ring is full."""
        at = DATA + SLOT * self.sent
        number = self.sent.to_bytes(8, "little")
        self.ram[at - BASE : at - BASE + SLOT] = number + bytes(SLOT - 8)
        cut = self.rng.choice([8, 3, 5])
        readable = [(at, cut), (at + cut, 8 - cut)] if cut < 8 else [(at, 8)]
        writable = [(at + 16, 8)] if self.rng.random() < 0.6 else [(at + 16, 2), (at + 18, 6)]
        if self.options["size"] < 8 and self.rng.random() < 0.5:
            readable, writable = [(at, 8)], []
        name = self.driver.add(readable, writable)
        if name < 0:
            return False
        self.flying[name] = self.sent
        self.order.append(self.sent)
        self.sent += 1
        return True

    def fill(self) -> None:
        while self.offer():
            pass
        self.driver.publish()

    def collect(self) -> list[int]:
        """What came back, each checked. Once only: the driver knows of no other."""
        got = []
        for name, written in self.driver.poll():
            number = self.flying.pop(name)
            at = DATA - BASE + SLOT * number
            assert written in (0, 8), written
            answer = self.ram[at + 16 : at + 24]
            assert answer == (~number & (1 << 64) - 1).to_bytes(8, "little") or written == 0
            got.append(number)
        return got

    # ---- the device ----

    @staticmethod
    def answer(chain: Any) -> int:
        number = int.from_bytes(chain.read(), "little")
        chain.write((~number & (1 << 64) - 1).to_bytes(8, "little"))
        return number

    def serve(self, queue: Queue, most: int = 8) -> list[int]:
        """All there is, in the order in which it was taken."""
        numbers = []
        while batch := queue.pop(self.rng.randint(1, most)):
            numbers += [self.answer(chain) for chain in batch]
            batch.push()
        return numbers

    def turn(self, rounds: int) -> None:
        """Bring the ring somewhere: so many times all of it there and back."""
        queue = self.start()
        for _ in range(rounds):
            for _ in range(self.rng.randint(1, 4)):
                self.offer()
            self.driver.publish()
            self.serve(queue)
            self.collect()
        queue.close()

    # ---- what is in shared memory ----

    def state(self) -> tuple[bytes, bytes]:
        return self.ram[:], self.record[:]

    def apply(self, state: tuple[bytes, bytes]) -> None:
        self.ram[:], self.record[:] = state

    def close(self) -> None:
        del self.driver
        self.region.close()
        self.memory.clear()
        for fd in (self.fd, self.region_fd):
            os.close(fd)


# ---- one instruction at a time ----------------------------------------------------------------------------

TRACEME, CONTINUE, STEP = 0, 7, 9
_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long

# What writes to shared memory. The interpreter in between runs at full speed.
WRITERS = {"vh_queue_init", "vh_pop", "vh_put_back", "vh_push", "vh_kicks_on", "vh_kicks_off"}
MARK = signal.SIGUSR1


class Marked:
    """The C core, with a mark for the tracer before and behind each function that writes."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(core, name)
        if name not in WRITERS:
            return function

        def call(*arguments: Any) -> Any:
            signal.raise_signal(MARK)
            result = function(*arguments)
            signal.raise_signal(MARK)
            return result

        return call


def steps(run: Callable[[], None]) -> Iterator[int]:
    """Run in a child; stops behind every instruction of the C core with its number."""
    pid = os.fork()
    if not pid:
        try:
            queue_module.lib = Marked()  # type: ignore[assignment]
            _ptrace(TRACEME, 0, None, None)
            signal.raise_signal(signal.SIGSTOP)
            run()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSTOPPED(status), f"the child is not traced: {status:#x}"
    count, how = 0, CONTINUE
    try:
        while os.WIFSTOPPED(status):
            number = os.WSTOPSIG(status)
            if number == MARK:
                how = CONTINUE if how == STEP else STEP
            deliver = None if number in (signal.SIGTRAP, signal.SIGSTOP, MARK) else number
            assert _ptrace(how, pid, None, deliver) == 0, os.strerror(ctypes.get_errno())
            status = os.waitpid(pid, 0)[1]
            count += 1
            yield count
    finally:
        if os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert os.WIFEXITED(status), f"the child ended with {status:#x}"
    assert os.WEXITSTATUS(status) == 0, "the child failed"


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")


# ---- killed -----------------------------------------------------------------------------------------------


def world(kind: str, seed: int) -> World:
    """A ring somewhere, full of requests."""
    made = World(kind, seed)
    made.turn(2 + seed % 11)
    made.fill()
    return made


def work(made: World, queue: Queue) -> None:
    """Take and return in several ways; something stays with the device."""
    chains = list(queue.pop(2))
    for chain in chains:
        made.answer(chain)
    batch = queue.pop(3)
    if batch and not queue.defers:
        queue_module.lib.vh_put_back(queue.cdata, batch.cdata, 1)
        if chains:
            chains.pop(0).push()  # an older one comes back before the newest goes back
        queue_module.lib.vh_put_back(queue.cdata, batch.cdata, 0)
    batch = queue.pop(3)
    for chain in batch:
        made.answer(chain)
    if chains:
        chains.pop().push()
    batch.push()
    for chain in queue.pop(1):
        made.answer(chain)
    for chain in reversed(chains):
        chain.push()


def survive(kind: str, seed: int, state: tuple[bytes, bytes], nth: int) -> None:
    """Go on after a device that left this."""
    twin = world(kind, seed)
    try:
        wanted = list(twin.flying.values())
        twin.apply(state)
        got = twin.collect()
        # A front-end may know no better than where the ring began, long ago.
        stale = (0x80008000 if twin.layout.packed else 0) if nth % 2 else None
        queue = twin.start(stale)
        in_flight = queue.again
        again = twin.serve(queue, 1 + nth % 3)
        oldest = sorted(again[:in_flight])
        assert again[:in_flight] == oldest, f"in flight were {again[:in_flight]}"
        assert again[in_flight:] == sorted(again[in_flight:])
        got += twin.collect()
        assert sorted(got) == sorted(wanted), f"{got} came back of {wanted}"
        for _ in range(4):  # and the ring is as good as any
            twin.fill()
            wanted = list(twin.flying.values())
            twin.serve(queue)
            assert sorted(twin.collect()) == sorted(wanted)
        assert twin.driver.free == twin.layout.size
        queue.close()
    finally:
        twin.close()


def watch(made: World, run: Callable[[], None]) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Every state of shared memory while `run` is run, and behind which instruction it is there first."""
    last = made.state()
    yield 0, last
    for step in steps(run):
        if made.record[:] != last[1] or made.ram[:] != last[0]:
            last = made.state()
            yield step, last
    say(f"{step} instructions")


def killed(kind: str, seed: int, following: int) -> None:
    made = world(kind, seed)
    queue = made.start()
    states = []
    for step, state in watch(made, lambda: work(made, queue)):
        states.append(state)
        try:
            survive(kind, seed, state, len(states))
        except (AssertionError, VirtqueueError) as error:
            raise AssertionError(f"killed behind instruction {step}: {error}") from error
    say(f"{len(states)} states")
    made.close()
    # Who comes after may be killed as well, while it finds out what is in flight.
    count = 0
    for first in random.Random(seed).sample(states, min(following, len(states))):
        made = world(kind, seed)
        made.apply(first)

        def come_after(made: World = made) -> None:
            queue = made.start(0x80008000 if made.layout.packed else 0)
            for chain in queue.pop(1):
                made.answer(chain)
                chain.push()

        for step, state in watch(made, come_after):
            count += 1
            try:
                survive(kind, seed, state, count)
            except (AssertionError, VirtqueueError) as error:
                raise AssertionError(f"the next one killed behind instruction {step}: {error}") from error
        made.close()
    say(f"after another one {count} states")


# ---- logged -----------------------------------------------------------------------------------------------


def logged(kind: str, seed: int, _: int) -> None:
    """A front-end that takes the marks, and copies the pages, behind every instruction misses nothing."""
    made = world(kind, seed)
    pages = SIZE // PAGE
    fd = os.memfd_create("log")
    os.ftruncate(fd, PAGE)
    marks = mmap.mmap(fd, PAGE)
    marks[:] = bytes([0xFF]) * PAGE  # beyond what there is none may be touched
    first = BASE // PAGE
    marks[first // 8 : (first + pages + 7) // 8] = bytes((first + pages + 7) // 8 - first // 8)
    log = DirtyLog(fd, PAGE, 0)
    queue = made.start(inflight=False)
    queue.log_to(log, data=True, used=USED, ring=DESC)
    copy = bytearray(made.ram[:])
    before = marks[:]

    def run() -> None:
        queue.kicks_on()
        work(made, queue)
        queue.kicks_off()

    taken = instructions = 0
    for instructions in steps(run):  # noqa: B007 - the last one is shown
        now = marks[:]
        if now == before:
            continue
        marks[:] = before
        for page in range(pages):
            if now[(first + page) // 8] & ~before[(first + page) // 8] & 1 << (first + page) % 8:
                copy[page * PAGE : (page + 1) * PAGE] = made.ram[page * PAGE : (page + 1) * PAGE]
                taken += 1
    assert taken
    wrong = [page for page in range(pages) if copy[page * PAGE :][:PAGE] != made.ram[page * PAGE :][:PAGE]]
    assert not wrong, f"pages {wrong} were written behind their marks"
    say(f"{instructions} instructions, {taken} pages copied")
    log.close()


if __name__ == "__main__":
    gc.disable()
    {"killed": killed, "logged": logged}[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))
