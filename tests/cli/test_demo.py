# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``vhost demo``: success, the ways to fail, and that nothing is left behind."""

import os
import pty
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhost.cli import process
from vhost.cli.demo import _Demo
from vhost.frontend import Blk

from .programs import command, environment, python_path, run

pytestmark = pytest.mark.usefixtures("unix_build")
TIMEOUT = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the demo puts its files; checks that nothing of them, and no process, is left."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []
    assert children_with(str(folder)) == []


def children_with(text: str) -> list[int]:
    """Processes whose command line contains `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            pass  # it has ended
    return found


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run("vhost", "demo", *options, env=environment(TMPDIR=str(folder)))


def test_everything_works(folder: Path) -> None:
    done = demo(folder, "--size=9")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("PASSED: vhost-rng and vhost-blk work here: ")
    assert "18 MiB moved, every byte checked" in lines[-1]
    shown = [line.strip() for line in lines]
    assert shown.index("> GET_FEATURES") < shown.index("> SET_OWNER") < shown.index("< ok")
    assert any(line.startswith("> SET_PROTOCOL_FEATURES") and "REPLY_ACK" in line for line in shown)
    assert any("BLK_SIZE FLUSH TOPOLOGY" in line for line in shown)
    assert not any(line.startswith("?") for line in shown)
    assert [line for line in shown if line.startswith("writing")][-1].startswith("writing 100 %  9/9 MiB")
    assert sum(line.startswith(("writing", "reading")) for line in shown) <= 8
    assert max(len(line) for line in lines if line.startswith("    ")) <= 110


def test_bar_on_a_terminal(folder: Path) -> None:
    terminal, theirs = pty.openpty()
    child = subprocess.Popen(
        command("vhost", "demo", "--size=16"), stdout=theirs, env=environment(TMPDIR=str(folder))
    )
    os.close(theirs)
    output = bytearray()
    try:
        while data := os.read(terminal, 65536):
            output += data
    except OSError:
        pass  # how a terminal without the other end says so
    os.close(terminal)
    assert child.wait(TIMEOUT) == 0
    assert b"\r  [################################]  writing 100 %  16/16 MiB" in output
    assert b"PASSED" in output


def test_no_room_for_the_image(folder: Path) -> None:
    done = demo(folder, "--size=1048576")
    if "PASSED" in done.stdout:
        pytest.skip("this machine has room for 1 TiB")
    assert done.returncode == 1
    assert "FAILED to make a disk image: " in done.stderr
    assert "use a smaller --size or another TMPDIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_daemon_that_does_not_start(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "sitecustomize.py"
    broken.parent.mkdir()
    # Every Python process of this test reads this; only the daemon is harmed.
    broken.write_text(
        "import sys\n"
        "if 'vhost.daemon.blk' in sys.orig_argv:\n"
        "    sys.stderr.write('blk: no luck today\\n')\n"
        "    sys.stderr.flush()\n"
        "    import os; os._exit(3)\n"
    )
    env = environment(TMPDIR=str(folder), PYTHONPATH=python_path(broken.parent))
    done = run("vhost", "demo", "--size=1", env=env)
    assert done.returncode == 1
    assert "FAILED to start vhost-blk: vhost-blk ended with status 3 before it listened" in done.stderr
    assert "last lines of the log of vhost-blk:\n  blk: no luck today" in done.stderr


def running_demo(folder: Path) -> subprocess.Popen[str]:
    """A demo that will not end by itself soon, at the point where its disk is served."""
    child = subprocess.Popen(
        command("vhost", "demo", "--size=4096"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(TMPDIR=str(folder), PYTHONUNBUFFERED="1"),
    )
    assert child.stdout is not None
    for line in child.stdout:
        if "GET_CONFIG" in line:
            return child
    raise AssertionError(f"the demo ended early: {child.communicate()[1]}")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(folder: Path, number: int, status: int) -> None:
    child = running_demo(folder)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=TIMEOUT)
    assert child.returncode == status
    assert "Traceback" not in stderr


def test_daemon_that_dies(folder: Path) -> None:
    child = running_demo(folder)
    (pid,) = [pid for pid in children_with(str(folder)) if pid != child.pid]
    os.kill(pid, signal.SIGKILL)
    _, stderr = child.communicate(timeout=TIMEOUT)
    assert child.returncode == 1
    assert re.search(
        "^FAILED to (connect to vhost-blk|find the disk it should be|write to the disk): ",
        stderr,
        re.MULTILINE,
    )
    assert "vhost-blk ended with status -9" in stderr
    assert "last lines of the log of vhost-blk:" in stderr
    assert "Traceback" not in stderr


def test_reader_that_leaves(folder: Path) -> None:
    child = running_demo(folder)
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait(TIMEOUT) == 1
    assert child.stderr is not None
    assert child.stderr.read() == ""
    child.stderr.close()


def test_daemon_that_never_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_START_TIMEOUT", 0.2)
    daemon = process.Daemon("rng", tmp_path, "--print-capabilities")
    monkeypatch.setattr(daemon, "_command", ["sleep", "60"])
    start = time.monotonic()
    with pytest.raises(process.DaemonError, match=r"vhost-rng did not listen within 0\.2 s"), daemon:
        pass
    assert time.monotonic() - start < 30


def test_control_c_of_the_terminal_is_not_for_the_daemons(tmp_path: Path) -> None:
    with process.Daemon("rng", tmp_path) as daemon:
        assert os.getpgid(daemon.pid) == daemon.pid != os.getpgid(0)
    assert daemon.status == 0


def test_disk_that_returns_other_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    honest = Blk.read
    monkeypatch.setattr(Blk, "read", lambda self, offset, n: b"\xff" + honest(self, offset, n)[1:])
    assert _Demo(1 << 20).run() == 1
    out, err = capsys.readouterr()
    assert "PASSED" not in out
    assert "FAILED to compare what was written, read and stored: SHA-256 written " in err
