# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``vhost bench``: what it shows and writes, and what becomes of peers that fail."""

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhost.bench import Bench, Condition, Peer, Workload, figures
from vhost.bench import peer as peers

from .programs import command, environment, run
from .test_demo import children_with

pytestmark = pytest.mark.usefixtures("unix_build")
WRONG = Path(__file__).with_name("wrong_devices.py")
QUICK = ("--time=0.05", "--rounds=2", "--depth=32", "--mode=event")
EVENT = Condition(32, False)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where sockets, whose paths must be short, and logs go; checks that nothing, and no process, is left."""
    with tempfile.TemporaryDirectory(prefix="vb-") as name:
        yield Path(name)
        assert list(Path(name).iterdir()) == []
        assert children_with(name) == []


def device(kind: str, name: str | None = None) -> str:
    """A peer that is one of those in wrong_devices.py."""
    return f"{name or kind}={sys.executable} -P {WRONG} {kind} @SOCKET@"


def bench(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run("vhost", "bench", *options, env=environment(TMPDIR=str(folder)))


def table(stdout: str) -> list[list[str]]:
    """The rows of all tables in an output, without their heads."""
    rows = [line.split() for line in stdout.splitlines()]
    return [row for row in rows if len(row) > 2 and row[1].isdecimal()]


def test_our_own_devices_without_a_word(folder: Path) -> None:
    done = bench(folder, "--time=0.05", "--rounds=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert [row[:3] for row in table(done.stdout)] == [
        ["vhost-blk-null", "1", "event"],
        ["vhost-blk-null", "128", "event"],
        ["vhost-rng", "1", "event"],
        ["vhost-rng", "128", "event"],
    ]
    assert all(int(row[3].replace(",", "")) > 100 for row in table(done.stdout))
    assert max(map(len, done.stdout.splitlines())) <= 130


def test_every_round_in_json_and_all_peers_in_the_picture(folder: Path, tmp_path: Path) -> None:
    files = tmp_path / "out.json", tmp_path / "out.svg"
    done = bench(
        folder,
        *("blk", "vhost-blk", device("disk", "other"), "--depth=1,32", "--mode=event,poll"),
        *("--rounds=2", "--time=0.05", "--regions=20", "--indirect", "--read"),
        *(f"--json={files[0]}", f"--svg={files[1]}"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(table(done.stdout)) == 2 * 2 * 2
    found = json.loads(files[0].read_text())
    (part,) = found["benches"]
    assert found["machine"]["processors"] >= 1
    assert part["workload"]["access"] == "read"
    assert part["workload"]["regions"] == 20
    assert [peer["name"] for peer in part["peers"]] == ["vhost-blk", "other"]
    assert [peer["failed"] for peer in part["peers"]] == [None, None]
    rounds = part["rounds"]
    turns = [(1, "event"), (1, "poll"), (32, "event"), (32, "poll")]
    assert [(r["depth"], r["mode"], r["peer"]) for r in rounds] == [
        (*turn, name) for turn in turns for name in ("vhost-blk", "other", "other", "vhost-blk")
    ]
    for r in rounds:
        assert r["requests"] > 0
        assert (r["faults"], r["lost"]) == (0, 0)
        assert r["bytes"] == 4096 * r["requests"]
        assert 0 < r["p50"] <= r["p99"] <= r["p999"]
        assert r["server_ns"] > 0
        assert r["rate"] == pytest.approx(r["requests"] / r["seconds"])
    # A disk that was made for its peer has its data compared, another has not.
    assert sum(r["sampled"] for r in rounds if r["peer"] == "vhost-blk") > 0
    assert sum(r["sampled"] for r in rounds if r["peer"] == "other") == 0
    assert len(part["figures"]) == 8
    texts = [element.text for element in ET.parse(files[1]).getroot().iter()]
    assert {"vhost-blk", "other", "depth 32, poll"} <= set(texts)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("failing", "the first with status 1 for sector"),
        ("lying", "the first with a used length of 7 instead of 4097"),
        ("mute", "lost interrupts"),
    ],
)
def test_figures_of_a_disk_that_does_wrong_are_marked(folder: Path, kind: str, words: str) -> None:
    done = bench(folder, "blk", "vhost-blk", device(kind, "bad"), *QUICK, "--random")
    assert done.returncode == 1
    assert [row[0] for row in table(done.stdout)] == ["vhost-blk"]  # whose row has no mark between
    assert "bad (!)" in done.stdout
    assert "(!) bad, depth 32, event: " in done.stderr
    assert words in done.stderr
    assert "vhost-blk" not in done.stderr


def test_wrong_data_is_found_by_comparing(folder: Path) -> None:
    good, bad = device("disk", "unseen"), device("disk", "bad").replace("=", ":verify=", 1)
    done = bench(folder, "blk", good, bad, *QUICK)
    assert done.returncode == 1
    assert "(!) bad, " in done.stderr
    assert " began with 0x0, not with its number" in done.stderr
    assert "unseen" not in done.stderr


def test_lost_writes_are_found_by_reading_back(folder: Path) -> None:
    done = bench(
        folder, "blk", "vhost-blk", device("disk", "bad").replace("=", ":verify=", 1), *QUICK, "--write"
    )
    assert done.returncode == 1
    assert "(!) bad, " in done.stderr
    assert "sector 0 began with 0x0" in done.stderr
    assert "vhost-blk" not in done.stderr


@pytest.mark.parametrize("words", ["packed", "in-order", "packed:inflight", "dirty-log", "python"])
def test_a_device_beside_itself_with_another_ring_or_driver(folder: Path, words: str) -> None:
    done = bench(folder, "blk", "vhost-blk", f"vhost-blk:{words}", *QUICK, "--cores=1")
    assert (done.returncode, done.stderr) == (0, "")
    names = ["vhost-blk", "vhost-blk-" + words.replace(":", "-")]
    assert [row[0] for row in table(done.stdout)] == names
    assert all(row[-1] != "-" for row in table(done.stdout))  # data was compared


def test_entropy_that_never_comes(folder: Path) -> None:
    done = bench(folder, "rng", device("short"), *QUICK)
    assert done.returncode == 1
    assert "the first with a used length of 0 instead of 1 to 64" in done.stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dying", "bad: it closed the connection, or its ring, after "),
        ("hanging", "bad: nothing came back for 5 s, after "),
        ("confused", "bad: it returned what is not in flight, after "),
    ],
)
@pytest.mark.parametrize("mode", ["event", "poll"])
def test_peer_that_gives_up(folder: Path, kind: str, words: str, mode: str) -> None:
    done = bench(folder, "blk", device(kind, "bad"), "vhost-blk", *QUICK[:-1], f"--mode={mode}")
    assert done.returncode == 1
    (line,) = done.stderr.split("\n", 1)[1].splitlines()
    assert line.startswith(words)
    if kind == "dying":
        assert line.endswith(" requests; ended with status 3; its last words: out of luck")
    # The other one is measured to the end; there is nothing to compare it with.
    assert [row[0] for row in table(done.stdout)] == ["vhost-blk"]


def test_peers_that_do_not_start(folder: Path) -> None:
    done = bench(
        folder, "blk", "false=false @SOCKET@", "nobody=/nonexistent @SOCKET@", f"away=@{folder}/s", *QUICK
    )
    assert done.returncode == 1
    assert table(done.stdout) == []
    lines = done.stderr.splitlines()
    assert "false: ended with status 1 before its socket was there" in lines
    assert "nobody: cannot run /nonexistent: No such file or directory" in lines
    assert any(line.startswith("away: ") and "No such file or directory" in line for line in lines)


def test_peer_that_never_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_START", 0.2)
    start = time.monotonic()
    sleeper = Peer("late", ("sh", "-c", "exec sleep 60", "@SOCKET@"))
    comparison = Bench(Workload.of("rng"), [sleeper], [EVENT])
    comparison.run()
    assert "no socket at " in comparison.failed["late"]
    assert time.monotonic() - start < 20


def test_peer_that_runs_already(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rng.sock"
    with subprocess.Popen(command("vhost.daemon.rng", "--quiet", f"--socket-path={path}")) as daemon:
        try:
            deadline = time.monotonic() + 20
            while not path.is_socket() and time.monotonic() < deadline:
                time.sleep(0.01)
            done = bench(folder, "rng", f"there=@{path}", "vhost-rng", *QUICK)
            assert (done.returncode, done.stderr) == (0, "")
            assert [row[0] for row in table(done.stdout)] == ["there", "vhost-rng"]
            assert daemon.poll() is None
        finally:
            daemon.terminate()
    assert daemon.returncode == 0


def stopped(word: str) -> bool:
    """Whether the process with `word` in its command line is stopped, or is so soon."""
    (pid,) = children_with(word)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def test_a_peer_that_spins_rests_outside_its_turns(tmp_path: Path) -> None:
    word = str(tmp_path / "log")
    spins = Peer.parse(f"spins:spin={sys.executable} -P {WRONG} disk @SOCKET@ {word}", "blk")
    quiet = Peer.parse(device("disk", "quiet"), "blk")
    states: list[tuple[str, bool]] = []
    comparison = Bench(
        Workload.of("blk"),
        [spins, quiet],
        [EVENT],
        rounds=2,
        seconds=0.05,
        tell=lambda done, total, what: states.append((what.partition(",")[0], stopped(word))),
    )
    comparison.run()
    assert comparison.failed == {}
    assert states == [("spins", True), ("quiet", True), ("quiet", True), ("spins", True)]
    assert all(figure.sound and figure.rounds == 2 for figure in figures(comparison.results))


def test_processors_are_kept_to_and_given_back(tmp_path: Path) -> None:
    mine = os.sched_getaffinity(0)
    last, word = max(mine), str(tmp_path / "log")
    seen = []

    def tell(done: int, total: int, what: str) -> None:
        (pid,) = children_with(word)
        seen.append((os.sched_getaffinity(pid), os.sched_getaffinity(0)))

    peer = Peer.parse(f"a={sys.executable} -P {WRONG} disk @SOCKET@ {word}", "blk")
    comparison = Bench(
        Workload.of("blk"), [peer], [EVENT], 1, 0.05, server_cpu=last, driver_cpu=min(mine), tell=tell
    )
    comparison.run()
    assert seen == [({last}, {min(mine)})]
    assert os.sched_getaffinity(0) == mine


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("gpu",), "'gpu' is no device; there are blk, rng, net, and control"),
        (("blk", "--depth=0"), "--depth 0: numbers from 1 on are wanted"),
        (("blk", "--depth=1,,2"), "--depth 1,,2: "),
        (("blk", "--mode=fast"), "--mode fast: 'fast' is neither event nor poll"),
        (("blk", "--rounds=0"), "0 rounds of 0.4 s: 1 or more"),
        (("blk", "--time=0"), "of at most 60 s"),
        (("blk", "--size=100"), "its sectors have 512"),
        (("rng", "--write"), "a load of rng is one of fill, not write"),
        (("net",), "net: name what to measure"),
        (("blk", "--queue-size=128", "--depth=64"), "depth 64 takes 192 entries of the ring; it has 128"),
        (("blk", "--server-cpu=100000"), "there is no processor 100000 for us"),
        (("blk", "x"), "'x' is none of vhost-blk, vhost-blk-null"),
        (("blk", "vhost-blk", "vhost-blk"), "two peers are named vhost-blk"),
        (("blk", "--cores=1", "--server-cpu=0"), "--cores says where both run"),
        (("blk", "--write", "--python"), "a load of write comes from C"),
        (("blk", "--rounds=many"), "argument --rounds: invalid int value: 'many'"),
    ],
)
def test_mistakes_end_with_status_2(options: tuple[str, ...], words: str) -> None:
    done = run("vhost", "bench", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_messages_of_the_control_plane(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    quick = ("--rounds=2", "--time=0.02", f"--json={out}")
    done = bench(folder, "control", "vhost-rng", device("disk", "other"), *quick)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(out.read_text())["costs"]
    operations = ("handshake", "GET_FEATURES", "ADD_MEM_REG")
    assert [(c["operation"], c["peer"]) for c in found] == [
        (operation, peer) for operation in operations for peer in ("vhost-rng", "other")
    ]
    assert all(c["rounds"] == 2 and 0 < c["p50"] <= c["p99"] for c in found)
    assert all((c["ratio"] is None) == (c["peer"] == "vhost-rng") for c in found)


def test_messages_to_who_ends_are_a_failure(folder: Path) -> None:
    done = bench(folder, "control", "false=false @SOCKET@", "--rounds=1", "--time=0.02")
    assert done.returncode == 1
    assert "false: ended with status 1 before its socket was there" in done.stderr


def test_peers_of_a_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "peers.toml"
    file.write_text(f'[blk]\n"mine:verify" = "{sys.executable} -P {WRONG} disk @SOCKET@"\n')
    done = bench(folder, "blk", "mine", f"--peers={file}", *QUICK)
    assert done.returncode == 1  # the disk has zeros, and mine says it has numbers
    assert " began with 0x0, not with its number" in done.stderr
    file.write_text("[blk]\nmine = 5\n")
    done = bench(folder, "blk", "mine", f"--peers={file}", *QUICK)
    assert done.returncode == 2
    assert "the table of blk has lines NAME" in done.stderr


def test_a_disk_in_memory_is_filled_before_it_is_compared(folder: Path) -> None:
    done = bench(folder, "blk", "vhost-blk-memory", *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    ((*_, compared),) = table(done.stdout)
    assert int(compared.replace(",", "")) > 0


@pytest.mark.parametrize(("size", "each"), [("66048", "512"), ("1536", "512"), ("294912", "98304")])
def test_a_disk_of_any_size_is_filled_to_its_end(folder: Path, size: str, each: str) -> None:
    disk = f"odd:fill=vhost-blk --socket-path=@SOCKET@ --quiet --memory={size}"
    done = bench(folder, "blk", disk, "--read", f"--size={each}", *QUICK, "--time=0.2")
    assert (done.returncode, done.stderr) == (0, "")
    ((*_, compared),) = table(done.stdout)
    assert int(compared.replace(",", "")) > 0


def test_help_shows_examples() -> None:
    done = run("vhost", "bench", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "vhost bench blk vhost-blk qemu-storage-daemon --svg blk.svg" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(folder: Path, number: int, status: int) -> None:
    child = subprocess.Popen(
        command("vhost", "bench", "blk", "vhost-blk", "--rounds=1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(TMPDIR=str(folder)),
    )
    deadline = time.monotonic() + 30
    while not list(folder.glob("*/vhost-blk.sock")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == status
    assert "Traceback" not in stderr
    assert list(Path("/dev/shm").glob(f"vhost-bench-{child.pid}-*")) == []


def test_progress_on_a_terminal(folder: Path) -> None:
    terminal, theirs = pty.openpty()
    child = subprocess.Popen(
        command("vhost", "bench", "rng", "vhost-rng", *QUICK),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=environment(TMPDIR=str(folder)),
    )
    os.close(theirs)
    output = bytearray()
    try:
        while data := os.read(terminal, 65536):
            output += data
    except OSError:
        pass  # how a terminal without the other end says so
    os.close(terminal)
    assert child.wait(60) == 0
    assert b"[................................]  0/2  vhost-rng, depth 32, event" in output
    assert b"[################................]  1/2  vhost-rng, depth 32, event" in output
    assert output.endswith(b"\r\x1b[K")
