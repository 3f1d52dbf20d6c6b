# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab itself: a failing command and a lost guest are told apart, and nothing stays behind."""

import contextlib
import os
import select
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import guest
from tests.lab.daemons import ours
from tests.lab.guest import CommandFailed, Guest, LostGuest
from tests.lab.initramfs import Initramfs
from tests.lab.kernel import Kernel
from tests.lab.prerequisites import Missing, Policy, policy, tool

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


def test_a_machine_that_does_not_start_is_a_lost_guest(root: Path, tmp_path: Path) -> None:
    with pytest.raises(LostGuest, match=r"could not (load|open) kernel"):
        Guest(guest.machine(tmp_path / "no-kernel", root), tmp_path)


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
