# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Files that shrink under a mapping. Every test is a process of its own: failing means dying."""

import signal
import subprocess
import sys

import pytest

PROLOGUE = """
import ctypes, faulthandler, mmap, os, resource, signal, sys, threading
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from vhost._core import ffi, lib
from vhost.mem import Memory, RegionSpec

PAGE = os.sysconf("SC_PAGE_SIZE")
SPEC = RegionSpec(0, 16 * PAGE, 1 << 40)
fd = os.memfd_create("guest")
os.ftruncate(fd, SPEC.size)

def mapped(spec=SPEC):
    memory = Memory()
    memory.replace([(spec, os.dup(fd))])
    return memory

def foreign():
    # A SIGBUS that has nothing to do with guest memory.
    other = os.memfd_create("other")
    os.ftruncate(other, PAGE)
    area = mmap.mmap(other, PAGE)
    os.ftruncate(other, 0)
    return area[0]
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + body], capture_output=True, text=True, timeout=60, check=False
    )


def survives(body: str) -> str:
    done = run(body)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dies(body: str) -> str:
    done = run(body)
    assert done.returncode == -signal.SIGBUS, (done.returncode, done.stdout, done.stderr)
    return done.stderr


def test_a_truncated_file_reads_zeros_and_is_reported() -> None:
    survives("""
memory = mapped()
with memory.access(0, SPEC.size, write=True) as view:
    view[:] = bytes([7]) * SPEC.size
    os.ftruncate(fd, 2 * PAGE)
    assert memory.damaged() is None and lib.vh_guard_hits() == 0
    assert view[PAGE] == 7, "what is left of the file is untouched"
    assert memory.damaged() is None
    assert view[5 * PAGE + 3] == 0
    assert memory.damaged() == SPEC and lib.vh_guard_hits() == 1
    view[5 * PAGE] = 1
    view[9 * PAGE] = 1
    assert lib.vh_guard_hits() == 2
    assert bytes(view[-PAGE:]) == bytes(PAGE)
    assert view[PAGE] == 7
assert os.fstat(fd).st_size == 2 * PAGE
memory.clear()
assert "/memfd:guest" not in open("/proc/self/maps").read()
assert memory.damaged() is None
""")


def test_several_threads_fault_at_once() -> None:
    survives("""
memory = mapped()
os.ftruncate(fd, 0)
barrier = threading.Barrier(8)
def touch(n):
    with memory.access(0, SPEC.size, write=True) as view:
        barrier.wait()
        for page in range(16):
            view[page * PAGE + n] = 1
threads = [threading.Thread(target=touch, args=(n,)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
with memory.access(0, SPEC.size) as view:
    assert sum(view) >= 16
assert lib.vh_guard_hits() >= 16
""")


def test_only_the_region_of_the_file_is_marked() -> None:
    survives("""
memory = mapped()
good = RegionSpec(SPEC.guest_end, PAGE, 1 << 41)
other = os.memfd_create("good")
os.ftruncate(other, PAGE)
memory.add(good, other)
os.ftruncate(fd, 0)
with memory.access(0, 1) as view:
    view[0]
slots = [region.guard for region in memory.table.regions]
assert [lib.vh_guard_hit(slot) for slot in slots] == [1, 0]
""")


def test_a_region_that_loses_many_pages_is_replaced_whole() -> None:
    # Every page replaced splits a mapping, and a process may have only so many.
    survives("""
pages = 200_001
big = RegionSpec(0, pages * PAGE, 0)
os.ftruncate(fd, big.size)
memory = mapped(big)
before = len(open("/proc/self/maps").readlines())
os.ftruncate(fd, PAGE)
with memory.access(0, big.size, write=True) as view:
    for page in range(0, pages, 1000):
        view[page * PAGE] = 1
    assert lib.vh_guard_hits() == 17
    assert view[200_000 * PAGE] == 1
    assert sum(view[page * PAGE] for page in range(0, pages, 1000)) >= 201 - 17
maps = open("/proc/self/maps").read()
assert len(maps.splitlines()) < before + 50 and "/memfd:guest" not in maps
assert memory.damaged() == big
""")


@pytest.mark.parametrize("before", ["", "faulthandler.enable()\n"])
@pytest.mark.parametrize(
    "after", ["", "faulthandler.enable()\n", "faulthandler.enable(); again = mapped()\n"]
)
def test_a_fault_elsewhere_still_kills(before: str, after: str) -> None:
    text = dies(f"{before}memory = mapped()\n{after}foreign()\n")
    if before or after:
        assert "Fatal Python error: Bus error" in text
        assert text.count("Fatal Python error") <= 2


def test_a_signal_that_was_sent_still_kills() -> None:
    dies("memory = mapped()\nos.kill(os.getpid(), signal.SIGBUS)\n")


def test_a_signal_that_was_ignored_stays_ignored_but_a_fault_does_not() -> None:
    text = dies("""
signal.signal(signal.SIGBUS, signal.SIG_IGN)
memory = mapped()
os.kill(os.getpid(), signal.SIGBUS)
print("alive", file=sys.stderr)
foreign()
""")
    assert text == "alive\n"


def test_a_handler_in_python_is_still_called_for_signals() -> None:
    out = survives("""
signal.signal(signal.SIGBUS, lambda *_: print("handled"))
memory = mapped()
os.kill(os.getpid(), signal.SIGBUS)
""")
    assert out == "handled\n"


def test_the_handler_is_put_back_with_the_next_region() -> None:
    survives("""
memory = mapped()
signal.signal(signal.SIGBUS, signal.SIG_DFL)
faulthandler.enable()
memory.add(RegionSpec(1 << 30, PAGE, 1 << 45), os.dup(fd))
os.ftruncate(fd, 0)
with memory.access(0, 1) as view:
    assert view[0] == 0
assert memory.damaged() == SPEC
""")


def test_installing_twice_changes_nothing() -> None:
    # Were the handler its own predecessor, a fault elsewhere would never end.
    dies("memories = [mapped() for _ in range(50)]\nforeign()\n")


def test_slots_are_counted_and_reused() -> None:
    survives("""
area = ffi.cast("void *", 1 << 40)
assert lib.vh_guard_add(ffi.NULL, PAGE) == -22
assert lib.vh_guard_add(area, 0) == -22
assert lib.vh_guard_add(area, 2**64 - 1) == -22
slots = [lib.vh_guard_add(area, PAGE) for _ in range(4096)]
assert slots == list(range(1, 4097))
assert lib.vh_guard_add(area, PAGE) == -28
try:
    mapped()
except OSError as error:
    assert error.errno == 28 and "guard" in str(error)
else:
    raise AssertionError("mapped without a guard")
assert "/memfd:guest" not in open("/proc/self/maps").read()
lib.vh_guard_remove(17)
assert lib.vh_guard_add(area, PAGE) == 17
for slot in slots:
    lib.vh_guard_remove(slot)
for slot in (0, -1, 4097):
    lib.vh_guard_remove(slot)
    assert lib.vh_guard_hit(slot) == 0
assert mapped().table.regions[0].guard == 1
""")


def test_a_slot_used_again_starts_undamaged() -> None:
    survives("""
memory = mapped()
os.ftruncate(fd, 0)
with memory.access(0, 1) as view:
    view[0]
assert memory.damaged() == SPEC
memory.clear()
os.ftruncate(fd, SPEC.size)
memory = mapped()
assert memory.table.regions[0].guard == 1 and memory.damaged() is None
""")


def test_errno_and_kernel_accesses_are_left_alone() -> None:
    # The kernel reports EFAULT by itself; our handler is not involved.
    survives("""
memory = mapped()
os.ftruncate(fd, 0)
source = os.open("/dev/zero", os.O_RDONLY)
with memory.access(0, PAGE, write=True) as view:
    try:
        os.preadv(source, [view], 0)
    except OSError as error:
        assert error.errno == 14
    else:
        raise AssertionError("read into nothing")
assert memory.damaged() is None
""")


@pytest.mark.parametrize("offset", [0, 8, 4096])
def test_an_inflight_region_is_truncated(offset: int) -> None:
    survives(f"""
from vhost.mem import InflightRegion, InflightSpec
more = os.memfd_create("more")
os.ftruncate(more, 64 * PAGE + {offset})
region = InflightRegion(more, InflightSpec(64 * PAGE, {offset}, 64, 100))
os.ftruncate(more, 0)
for index in range(64):
    lib.vh_inflight_format(ffi.cast("uint8_t *", region.part(index, 100, packed=False)), 100, False)
region.close()
""")
