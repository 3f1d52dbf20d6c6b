# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab itself: a failing command and a lost guest are told apart, and nothing stays behind."""

import contextlib
import os
import re
import select
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import guest
from tests.lab.console import stalled
from tests.lab.daemons import ours
from tests.lab.guest import CommandFailed, Guest, LostGuest, Stalled
from tests.lab.initramfs import Initramfs
from tests.lab.inner import inner_pytest
from tests.lab.kernel import Kernel
from tests.lab.prerequisites import Missing, Policy, policy, tool
from tests.lab.uml import SUITES, Uml, UmlGuest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


def test_a_failing_command_is_no_lost_guest_and_a_crash_is(
    kernel: Kernel, root: Path, tmp_path: Path
) -> None:
    with Guest(guest.machine(kernel.image, root), tmp_path) as booted:
        with pytest.raises(CommandFailed, match="status 3") as failed:
            booted.run("echo out; echo error >&2; exit 3")
        assert (failed.value.status, failed.value.output) == (3, "out\nerror")
        with pytest.raises(CommandFailed, match="status 137"):
            booted.run("sleep 1000", seconds=1)
        assert booted.run("echo still here") == "still here"
        with pytest.raises(LostGuest, match="Kernel panic"):
            booted.run("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")
        assert booted.lost
        booted.process.kill()
        with pytest.raises(LostGuest, match="is gone"):
            booted.run("true")


@pytest.mark.parametrize("suite", SUITES)
def test_user_mode_linux_is_a_guest_too(suite: str, tmp_path: Path) -> None:
    linux = Uml.made(suite, tmp_path / "root.cpio")
    with UmlGuest(linux, (), tmp_path) as booted:
        assert booted.run("uname -r") == linux.kernel.version
        with pytest.raises(CommandFailed, match="status 3"):
            booted.run("exit 3")
        assert booted.power_off() == 0
    with UmlGuest(linux, (), tmp_path) as booted, pytest.raises(LostGuest, match="Kernel panic"):
        booted.run("echo c > /proc/sysrq-trigger")


def test_a_machine_that_does_not_start_is_a_lost_guest(root: Path, tmp_path: Path) -> None:
    with pytest.raises(LostGuest, match=r"could not (load|open) kernel"):
        Guest(guest.machine(tmp_path / "no-kernel", root), tmp_path)


# What Linux says when a timer that it has set did not go off.
STALL = "rcu: rcu_preempt kthread timer wakeup didn't happen for 5252 jiffies! g1037 f0x0 RCU_GP_WAIT_FQS(5)"


def test_a_silent_guest_is_stalled_if_its_kernel_says_so(tmp_path: Path) -> None:
    linux = Uml.made(SUITES[0], tmp_path / "root.cpio")
    hang = f'echo "<3>{STALL}" > /dev/kmsg; kill -STOP $PPID'
    with UmlGuest(linux, (), tmp_path) as booted, pytest.raises(Stalled, match="emulator lost a timer"):
        booted.run(hang, seconds=1)


def test_only_a_lost_timer_is_a_stall(tmp_path: Path) -> None:
    busy = "rcu: INFO: rcu_preempt self-detected stall on CPU"
    console = tmp_path / "console.log"
    assert not stalled(console)
    for text, expected in (
        (f"{busy}\n{STALL}\n", True),
        (f"{busy}\nrcu: rcu_preempt kthread starved for 5252 jiffies!\n", False),
        (f"{STALL}\nBUG: kernel NULL pointer dereference\n", False),
        (f"{STALL}\nKernel panic - not syncing\n", False),
    ):
        console.write_text(text)
        assert stalled(console) is expected, text
    console.write_text(f"{STALL}\n")
    assert not stalled(console, start=console.stat().st_size)  # in an earlier boot


REPEATS = """\
import pytest
from tests.lab.guest import LostGuest, Stalled

boots = []

@pytest.fixture(scope="module")
def guest():
    boots.append(None)
    if len(boots) == 1:
        raise Stalled("while booting")
    return len(boots)

def test_that_cannot_boot(guest):
    assert guest == 2

def test_that_stalls(guest):
    if guest == 2:
        raise Stalled("once")

def test_with_the_same_guest(guest):
    assert guest == 3

def test_that_stalls_again(guest):
    raise Stalled("for ever")

def test_that_loses_it(guest):
    raise LostGuest(f"boot {len(boots)}")

def test_that_fails(guest):
    assert guest == 4
    raise AssertionError("fails")
"""


def test_a_test_is_repeated_once_after_a_stall_and_for_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "test_repeats.py"
    script.write_text(REPEATS)
    done = inner_pytest("-p", "tests.lab.stalls", "-rA", script)
    said = done.stdout
    assert done.returncode == 1, said + done.stderr
    assert "3 failed, 3 passed" in said, said
    for failure in ("Stalled: for ever", "LostGuest: boot 4", "AssertionError: fails"):
        assert failure in said, said
    stalls = re.findall(r"lab: the emulator stalled in \S+::(\w+)", said)
    assert stalls == ["test_that_cannot_boot", "test_that_stalls", "test_that_stalls_again"]


def test_a_process_does_not_outlive_the_lab(tmp_path: Path) -> None:
    script = (
        "import os, sys; sys.path.append(sys.argv[2]);"
        "from pathlib import Path; from tests.lab.process import Process;"
        "child = Process(['sleep', '1000'], Path(sys.argv[1]));"
        "print(child._child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", script, tmp_path / "log", Path(__file__).parents[2]]
    killed = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert killed.returncode == -9
    with contextlib.suppress(ProcessLookupError), open(os.pidfd_open(int(killed.stdout)), "rb") as end:
        assert select.select([end], [], [], 10)[0], "the child still runs"


def test_a_daemon_that_cannot_start_says_why(tmp_path: Path) -> None:
    options = ("--blk-file", tmp_path / "no-image")
    with (
        pytest.raises(AssertionError, match="no-image"),
        ours("vhost-blk", *options, name="blk", work=tmp_path, logs=tmp_path),
    ):
        pytest.fail("it runs without an image")


def test_complaints_are_found_in_a_log(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096 + 7))  # what is less than a sector is worth a warning
    with ours("vhost-blk", "--blk-file", image, name="blk", work=tmp_path, logs=tmp_path) as daemon:
        assert daemon.stop() == 0
        assert len(daemon.complaints()) == 1
        with pytest.raises(AssertionError, match="complains"):
            daemon.finish()


def test_the_archive_can_be_read_by_another_program(tmp_path: Path) -> None:
    made = Initramfs()
    made.folder("/empty")
    made.file("/some/where/script", b"#!/bin/sh\n", 0o755)
    made.file("/odd", b"12345")
    made.write(tmp_path / "root.cpio")
    place = tmp_path / "unpacked"
    place.mkdir()
    with open(tmp_path / "root.cpio", "rb") as source:
        subprocess.run(
            [tool("busybox"), "cpio", "-i"], stdin=source, cwd=place, check=True, capture_output=True
        )
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == [
        *("empty", "odd", "some", "some/where", "some/where/script"),
    ]
    assert (place / "odd").read_bytes() == b"12345"
    assert stat.S_IMODE((place / "some/where/script").stat().st_mode) == 0o755


def test_vhost_lab_has_three_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    for value, expected in (("", Policy.SKIP), ("1", Policy.FAIL), ("0", Policy.NEVER)):
        monkeypatch.setenv("VHOST_LAB", value)
        assert policy() is expected
    monkeypatch.setenv("CI", "1")
    monkeypatch.delenv("VHOST_LAB")
    assert policy() is Policy.FAIL
    monkeypatch.setenv("VHOST_LAB", "yes")
    with pytest.raises(ValueError, match="1 or 0"):
        policy()


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing, match="no-such-tool"):
        tool("no-such-tool")
