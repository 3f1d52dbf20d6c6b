# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The daemons as processes: sockets, signals, service manager, logs, and a front-end that uses them."""

import hashlib
import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from vhost import connect, listen
from vhost.errors import RefusedError, VirtqueueError
from vhost.frontend import Blk, Rng
from vhost.protocol import ProtocolFeature
from vhost.protocol import VirtioFeature as F

from .programs import command, daemon, environment, python_path, run

HERE = Path(__file__).parent
RNG, BLK, NET = "vhost.daemon.rng", "vhost.daemon.blk", "vhost.daemon.net"


def stream(seed: int, n: int) -> bytes:
    blocks = (hashlib.shake_256(f"{seed}:{i}".encode()).digest(4096) for i in range(n // 4096 + 1))
    return b"".join(blocks)[:n]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_without_a_client(tmp_path: Path, number: int) -> None:
    path = tmp_path / "s"
    with daemon(tmp_path, RNG, f"--socket-path={path}") as running:
        assert path.is_socket()
        assert running.end(number) == 0
        assert running.notifications.recv(100) == b"STOPPING=1"
    assert not path.exists()
    assert running.stderr.splitlines()[0] == f"vhost-rng: rng: listening on {path}"
    assert "Traceback" not in running.stderr


@pytest.mark.usefixtures("unix_build")
@pytest.mark.parametrize(
    ("module", "options"), [(RNG, ()), (BLK, ("--null=1M",)), (NET, ()), (NET, ("--respond=10.0.2.0/24",))]
)
def test_what_is_offered_is_the_users_choice(tmp_path: Path, module: str, options: tuple[str, ...]) -> None:
    changes = (
        "--features",
        "+iommu,+indirect,-event-idx",
        "--features",
        "-packed",
        "--features=-protocol.inflight-shmfd",
    )
    offers = []
    for changed in ((), changes):
        with daemon(tmp_path, module, f"--socket-path={tmp_path}/s", *options, *changed) as running:
            with connect(tmp_path / "s", queues=0) as frontend:
                offers.append((frontend.offered_features, frontend.offered_protocol_features))
            assert running.end() == 0
        (tmp_path / "notify").unlink()
    (virtio, protocol), (changed_virtio, changed_protocol) = offers
    assert changed_virtio ^ virtio == F.ACCESS_PLATFORM | F.RING_EVENT_IDX | F.RING_PACKED
    assert changed_virtio & F.ACCESS_PLATFORM
    assert changed_protocol ^ protocol == ProtocolFeature.INFLIGHT_SHMFD


@pytest.mark.usefixtures("unix_build")
@pytest.mark.parametrize(
    "options", [("--quirk", "packed-base-16"), ("--quirk=many-regions", "--quirk=packed-base-16"), ()]
)
def test_a_quirk_by_name(tmp_path: Path, options: tuple[str, ...]) -> None:
    with (
        daemon(tmp_path, RNG, f"--socket-path={tmp_path}/s", *options) as running,
        connect(tmp_path / "s", packed=True) as frontend,
    ):
        frontend.stop(0)
        frontend.start(0, 0x8000)  # as DPDK begins
        if options:
            assert len(frontend.request(writable=8)) == 8
        else:
            with pytest.raises(TimeoutError):
                frontend.request(writable=8, timeout=0.3)
        assert running.end() == 0


@pytest.mark.usefixtures("unix_build")
def test_signal_with_a_client(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    with (
        daemon(tmp_path, BLK, f"--socket-path={path}", f"--blk-file={image}") as running,
        connect(path) as frontend,
    ):
        Blk(frontend).write(0, b"x" * 512)
        assert running.end() == 0
        with pytest.raises(ConnectionError):
            frontend.config(0, 8)
    assert image.read_bytes()[:513] == b"x" * 512 + b"\0"
    assert "Traceback" not in running.stderr


@pytest.mark.usefixtures("unix_build")
def test_clients_one_after_the_other(tmp_path: Path, image: Path) -> None:
    options = "--serial=disk-7", "--num-queues=3"
    with daemon(tmp_path, BLK, "-s", f"{tmp_path}/s", "-b", str(image), *options) as running:
        for turn in range(3):
            with connect(tmp_path / "s", queues=3) as frontend:
                disk = Blk(frontend, queue=turn)
                assert disk.serial() == "disk-7"
                assert disk.capacity == 8 << 20
                assert disk.read(0, 512) == bytes([turn]) * 512
                disk.write(0, bytes([turn + 1]) * 512)
                disk.flush()
        assert running.end() == 0


@pytest.mark.usefixtures("unix_build")
def test_connections_leave_no_descriptors(tmp_path: Path, image: Path) -> None:
    with daemon(tmp_path, BLK, "-s", f"{tmp_path}/s", "-b", str(image)) as running:
        descriptors = Path(f"/proc/{running.process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        for _ in range(10):
            with connect(tmp_path / "s") as frontend:
                Blk(frontend).read(0, 4096)
        with connect(tmp_path / "s") as frontend:  # the others are gone once this one is served
            frontend.stop(0)
            assert len(list(descriptors.iterdir())) <= before + 8
        assert running.end() == 0


@pytest.mark.usefixtures("unix_build")
def test_queues_at_the_same_time(tmp_path: Path, image: Path) -> None:
    queues, size = 4, 65536
    with daemon(tmp_path, BLK, "-s", f"{tmp_path}/s", "-b", str(image), f"--num-queues={queues}") as running:
        with connect(tmp_path / "s", queues=queues) as frontend:
            disks = [Blk(frontend, queue=index) for index in range(queues)]
            parts = [os.urandom(size) for _ in range(100)]
            for index, part in enumerate(parts):
                disks[index % queues].submit_write(index * size, part)
            for disk in disks:
                assert all(data == b"" for _, data in disk.drain())
        assert running.end() == 0
    assert image.read_bytes()[: 100 * size] == b"".join(parts)


@pytest.mark.usefixtures("unix_build")
def test_read_only_disk(tmp_path: Path, image: Path) -> None:
    image.chmod(0o444)
    with daemon(tmp_path, BLK, "-r", "-s", f"{tmp_path}/s", "-b", str(image)) as running:
        with connect(tmp_path / "s") as frontend:
            disk = Blk(frontend)
            assert disk.read_only
            with pytest.raises(OSError, match="IOERR"):
                disk.write(0, bytes(512))
        assert running.end() == 0


@pytest.mark.usefixtures("unix_build")
@pytest.mark.parametrize(("option", "size"), [("--memory=3M", 3 << 20), ("--memory=1536", 1536)])
def test_disk_in_memory(tmp_path: Path, option: str, size: int) -> None:
    with daemon(tmp_path, BLK, "-s", f"{tmp_path}/s", option, "--serial=M", "--num-queues=2") as running:
        for turn in range(2):
            with connect(tmp_path / "s", queues=2) as frontend:
                disk = Blk(frontend, queue=turn)
                assert (disk.capacity, disk.serial()) == (size, "M")
                assert disk.read(size - 512, 512) == bytes([turn]) * 512
                disk.write(size - 512, b"\1" * 512)
                disk.flush()
                with pytest.raises(OSError, match="IOERR"):
                    disk.read(size, 512)
        assert running.end() == 0


@pytest.mark.usefixtures("unix_build")
def test_null_disk(tmp_path: Path) -> None:
    with daemon(tmp_path, BLK, "-s", f"{tmp_path}/s", "--null=1T") as running:
        with connect(tmp_path / "s") as frontend:
            disk = Blk(frontend)
            assert disk.capacity == 1 << 40
            disk.write((1 << 40) - 4096, bytes(4096))
            assert len(disk.read((1 << 40) - 4096, 4096)) == 4096
        assert running.end() == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--memory=1000", "a disk of 1000 bytes: at least one sector of 512, and whole ones"),
        ("--null=0", "a disk of 0 bytes"),
        ("--memory=1000000T", "Cannot allocate memory"),
    ],
)
def test_disk_that_cannot_be(tmp_path: Path, option: str, message: str) -> None:
    done = run(BLK, "-s", f"{tmp_path}/s", option)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("unix_build")
def test_read_only_disk_in_memory(tmp_path: Path) -> None:
    with (
        daemon(tmp_path, BLK, "-r", "-s", f"{tmp_path}/s", "--memory=1M"),
        connect(tmp_path / "s") as frontend,
    ):
        disk = Blk(frontend)
        assert disk.read_only
        with pytest.raises(OSError, match="IOERR"):
            disk.write(0, bytes(512))
        assert disk.read(0, 512) == bytes(512)


def test_mapping_is_not_direct(tmp_path: Path, image: Path) -> None:
    done = run(BLK, "-s", f"{tmp_path}/s", "-b", str(image), "--io=map", "--direct")
    assert done.returncode == 1
    assert "a mapping is of the page cache: io='map' and direct exclude each other" in done.stderr


def takes_direct(image: Path) -> bool:
    try:
        os.close(os.open(image, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.mark.usefixtures("unix_build")
@pytest.mark.parametrize(
    "options", [("--io=auto",), ("--io=uring",), ("--io=map",), ("--io=sync",), ("--direct",)], ids=str
)
def test_ways_to_an_image(tmp_path: Path, image: Path, options: tuple[str, ...]) -> None:
    if "--direct" in options and not takes_direct(image):
        pytest.skip("this file system has no O_DIRECT")
    data = os.urandom(1 << 20)
    with daemon(tmp_path, BLK, "-s", f"{tmp_path}/s", "-b", str(image), *options) as running:
        with connect(tmp_path / "s") as frontend:
            disk = Blk(frontend)
            for at in range(0, len(data), 65536):
                disk.submit_write(at, data[at : at + 65536])
            assert all(answer == b"" for _, answer in disk.drain())
            disk.flush()
            assert disk.read(0, len(data)) == data
        assert running.end() == 0
    assert image.read_bytes()[: len(data)] == data


@pytest.mark.usefixtures("unix_build")
@pytest.mark.parametrize(("io", "lines"), [("uring", 1), ("auto", 0)])
def test_kernel_that_forbids_io_uring(tmp_path: Path, image: Path, io: str, lines: int) -> None:
    options = "-s", f"{tmp_path}/s", "-b", str(image), f"--io={io}", "--num-queues=2", "-q"
    with daemon(tmp_path, "without_uring", *options, PYTHONPATH=python_path(HERE)) as running:
        for _ in range(2):
            with connect(tmp_path / "s", queues=2) as frontend:
                Blk(frontend, queue=1).write(0, b"z" * 512)
                assert Blk(frontend).read(0, 512) == b"z" * 512
        assert running.end() == 0
    said = f"vhost-blk: warning: {image}: no io_uring here (Operation not permitted), system calls instead"
    assert running.stderr.splitlines() == [said] * lines


@pytest.mark.usefixtures("unix_build")
def test_two_daemons_on_one_image(tmp_path: Path, image: Path) -> None:
    (tmp_path / "other").mkdir()
    options = "-s", f"{tmp_path}/s2", "-b", str(image)
    with daemon(tmp_path, BLK, "-s", f"{tmp_path}/s", "-b", str(image)) as running:
        for more in ((), ("--read-only",)):
            done = run(BLK, *options, *more)
            assert done.returncode == 1
            assert done.stderr == (
                f"vhost-blk: error: {image}: another program has it open for writing; "
                f"end that one, or use --no-lock at your own risk\n"
            )
        with daemon(tmp_path / "other", BLK, *options, "--no-lock") as other:
            assert other.end() == 0
        assert running.end() == 0
    (tmp_path / "other" / "notify").unlink()
    with daemon(tmp_path / "other", BLK, *options) as running:  # the lock went with the first
        assert running.end() == 0


@pytest.mark.usefixtures("unix_build")
def test_cache_mode(tmp_path: Path, image: Path) -> None:
    with daemon(tmp_path, BLK, "-s", f"{tmp_path}/s", "-b", str(image)), connect(tmp_path / "s") as frontend:
        assert frontend.config(32, 1) == b"\1"
        frontend.set_config(32, b"\0")
        assert frontend.config(0, 96)[32] == 0
        with pytest.raises(RefusedError):
            frontend.set_config(32, b"\7")
        Blk(frontend).write(512, b"y" * 512)
    assert image.read_bytes()[512:1024] == b"y" * 512


@pytest.mark.usefixtures("unix_build")
def test_several_sockets_with_their_own_seeds(tmp_path: Path) -> None:
    with daemon(tmp_path, RNG, "-s", f"{tmp_path}/s", "-c", "3", "--seed=10") as running:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["notify", "s0", "s1", "s2"]
        for index in (2, 0, 1):
            with connect(tmp_path / f"s{index}") as frontend:
                assert Rng(frontend).read(5000) == stream(10 + index, 5000)
        assert running.end() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["notify"]


@pytest.mark.usefixtures("unix_build")
def test_sockets_share_one_source(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    (tmp_path / "bytes").write_bytes(data)
    options = "-c2", f"--rng-source={tmp_path}/bytes"
    with daemon(tmp_path, RNG, "-s", f"{tmp_path}/s", *options) as running:
        with connect(tmp_path / "s0") as first, connect(tmp_path / "s1") as second:
            both = Rng(first).read(300), Rng(second).read(300)
        assert both[0] == data[:300]
        assert data.index(both[1]) >= 300  # no byte goes to two guests
        assert running.end() == 0


@pytest.mark.usefixtures("unix_build")
def test_front_end_that_listens(tmp_path: Path, image: Path) -> None:
    """It comes later, goes, and comes again; in the end a signal finds the daemon between two tries."""
    path = tmp_path / "s"
    with daemon(tmp_path, BLK, f"--connect={path}", "-b", str(image), "--num-queues=2") as running:
        for turn in range(3):
            with listen(path, queues=2, timeout=30) as frontend:
                disk = Blk(frontend, queue=turn % 2)
                assert disk.read(0, 512) == bytes([turn]) * 512
                disk.write(0, bytes([turn + 1]) * 512)
            assert not path.exists()
        assert running.end() == 0
        assert running.notifications.recv(100) == b"STOPPING=1"
    lines = running.stderr.splitlines()
    assert lines[0] == f"vhost-blk: blk: connecting to {path}"
    assert lines.count("vhost-blk: blk: front-end connected") == 3
    assert sum("trying again" in line for line in lines) <= 4
    assert "Traceback" not in running.stderr


@pytest.mark.usefixtures("unix_build")
def test_a_daemon_that_died_connects_again(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    options = f"--connect={path}", "-b", str(image)
    with ExitStack() as stack:
        running = stack.enter_context(daemon(tmp_path, BLK, *options))
        frontend = stack.enter_context(listen(path, reconnect=30, timeout=60))
        disk = Blk(frontend)
        for turn in range(3):
            wanted = {disk.submit_write(n * 512, bytes([turn, n]) * 256): n for n in range(64)}
            (tmp_path / str(turn)).mkdir()
            running.end(signal.SIGKILL)
            running = stack.enter_context(daemon(tmp_path / str(turn), BLK, *options))
            for token, _ in disk.drain():
                del wanted[token]
            assert not wanted
        assert disk.read(0, 64 * 512) == b"".join(bytes([2, n]) * 256 for n in range(64))
        assert running.end() == 0


@pytest.mark.usefixtures("unix_build")
def test_several_front_ends_that_listen(tmp_path: Path) -> None:
    with (
        daemon(tmp_path, RNG, f"--connect={tmp_path}/s", "-c", "2", "--seed=10") as running,
        listen(tmp_path / "s1", timeout=30) as second,
        listen(tmp_path / "s0", timeout=30) as first,
    ):
        assert Rng(first).read(100) == stream(10, 100)
        assert Rng(second).read(100) == stream(11, 100)
        assert running.end() == 0


@pytest.mark.parametrize("where", ["/dev/null", "/dev/null/s"])
def test_path_that_is_no_socket(where: str) -> None:
    done = run(RNG, f"--connect={where}")
    assert done.returncode == 1
    assert f"vhost-rng: error: cannot connect to {where}: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("unix_build")
def test_source_that_ends(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"only these")
    with daemon(tmp_path, RNG, "-s", f"{tmp_path}/s", f"--rng-source={tmp_path}/bytes") as running:
        with connect(tmp_path / "s") as frontend:
            assert frontend.request(writable=64) == b"only these"
            with pytest.raises(VirtqueueError):
                frontend.request(writable=64)
        assert running.end() == 0
    assert "no more bytes; give a source that does not end" in running.stderr


@pytest.mark.usefixtures("unix_build")
def test_quota_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with daemon(tmp_path, RNG, "-s", f"{tmp_path}/s", "--max-bytes=100", "-v") as running:
        with connect(tmp_path / "s", timeout=30) as frontend:
            assert len(frontend.request(writable=64)) == 64
            assert len(frontend.request(writable=64)) == 36
            frontend.queue(0).submit(writable=64)
            assert frontend.stop(0) == 2  # at once, not when the period of 65 s ends
        assert running.end() == 0


@pytest.mark.parametrize("spelling", ["--fd", "--socket-fd"])
@pytest.mark.usefixtures("unix_build")
def test_connected_descriptor(tmp_path: Path, spelling: str) -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    with daemon(tmp_path, RNG, f"{spelling}={fd}", "--seed=1", fds=(fd,)) as running:
        theirs.close()
        with connect(ours) as frontend:
            assert Rng(frontend).read(10) == stream(1, 10)
        assert running.end(None) == 0  # the peer is gone


@pytest.mark.usefixtures("unix_build")
def test_listening_descriptor(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/s")
        listener.listen()
        fd = listener.fileno()
        with daemon(tmp_path, RNG, f"--fd={fd}", "--seed=2", fds=(fd,)) as running:
            for _ in range(2):
                with connect(tmp_path / "s") as frontend:
                    Rng(frontend).read(10)
            assert running.end() == 0
    assert (tmp_path / "s").is_socket()  # not ours to remove


@pytest.mark.usefixtures("unix_build")
def test_socket_activation(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/s")
        listener.listen()
        # What systemd does between fork and exec: the socket as descriptor 3, the process's own id.
        script = (
            "import os, sys\n"
            f"os.dup2({listener.fileno()}, 3)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            f"os.execv(sys.executable, [sys.executable, '-P', '-m', {RNG!r}, '--seed=3'])\n"
        )
        starter = tmp_path / "starter.py"
        starter.write_text(script)
        fds = (listener.fileno(),)
        env = {"PYTHONPATH": python_path(tmp_path)}
        with daemon(tmp_path, "starter", fds=fds, **env) as running:
            with connect(tmp_path / "s") as frontend:
                assert Rng(frontend).read(10) == stream(3, 10)
            assert running.end() == 0


@pytest.mark.parametrize(
    ("setting", "lines"), [("", 0), ("vhost.backend=info", 1), ("info", 1), ("error", 0)]
)
def test_quiet_and_selected_logs(tmp_path: Path, setting: str, lines: int) -> None:
    with daemon(tmp_path, RNG, "-s", f"{tmp_path}/s", "-q", VHOST_LOG=setting) as running:
        assert running.end() == 0
        assert len(running.stderr.splitlines()) == lines


def test_journal_gets_priorities(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w+") as stderr:
        status = os.fstat(stderr.fileno())
        env = environment(JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}")
        options = "-s", f"{tmp_path}/s", "-b", "/nonexistent.img"
        subprocess.run(command(BLK, *options), env=env, stderr=stderr, check=False, timeout=60)
        stderr.seek(0)
        assert stderr.read() == "<3>/nonexistent.img: No such file or directory\n"
