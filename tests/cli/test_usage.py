# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Command lines: help, versions, capabilities, mistakes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vhost import __version__
from vhost.protocol.quirks import table
from vhost.version import describe

from .programs import environment, run

RNG, BLK, NET = "vhost.daemon.rng", "vhost.daemon.blk", "vhost.daemon.net"


@pytest.mark.parametrize(
    ("module", "device"),
    [
        (RNG, "-device vhost-user-rng-pci,chardev=c0"),
        (BLK, "-device vhost-user-blk-pci,num-queues=1,chardev=c0"),
        (NET, "-netdev vhost-user,id=n0,chardev=c0"),
        (NET, "-device virtio-net-pci,netdev=n0"),
    ],
)
def test_help_shows_how_to_start_the_virtual_machine(module: str, device: str) -> None:
    done = run(module, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "memory-backend-memfd,id=mem,size=1G,share=on" in done.stdout
    assert device in done.stdout
    assert "--socket-path" in done.stdout
    assert ",server=on" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


@pytest.mark.parametrize(("module", "name"), [(RNG, "vhost-rng"), (BLK, "vhost-blk"), (NET, "vhost-net")])
def test_version_of_a_daemon(module: str, name: str) -> None:
    done = run(module, "--version")
    assert (done.returncode, done.stdout) == (0, f"{name} {__version__}\n")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (RNG, {"type": "rng", "features": []}),
        (BLK, {"type": "block", "features": ["read-only", "blk-file"]}),
        (NET, {"type": "net", "features": []}),
    ],
)
def test_capabilities_whatever_else_is_said(module: str, expected: object) -> None:
    for options in ((), ("--socket-path=/x", "--fd=3"), ("--no-such-option",), ("--num-queues=many",)):
        done = run(module, *options, "--print-capabilities")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (RNG, (), "nowhere to serve: give --socket-path=PATH or --fd=FDNUM"),
        (RNG, ("-s", "/tmp/x", "--fd=3"), "--fd/--socket-fd: not allowed with argument -s/--socket-path"),
        (RNG, ("--fd=-1",), "argument --fd/--socket-fd: -1 is not at least 0"),
        (RNG, ("--fd=tty",), "argument --fd/--socket-fd: invalid number value: 'tty'"),
        (RNG, ("--socket-path=",), "argument -s/--socket-path: the path is empty"),
        (RNG, ("--connect=",), "argument --connect: the path is empty"),
        (RNG, ("-s", "/tmp/x", "--connect=/tmp/y"), "--connect: not allowed with argument -s/--socket-path"),
        (RNG, ("--fd=3", "-c", "2"), "-c/--socket-count: several sockets need --socket-path"),
        (RNG, ("-s", "/tmp/x", "-c", "0"), "argument -c/--socket-count: 0 is not from 1 to 256"),
        (RNG, ("-s", "/tmp/x", "-p", "0"), "argument -p/--period: 0 is not from 1 to 65536"),
        (RNG, ("-s", "/tmp/x", "-p", "65537"), "argument -p/--period: 65537 is not from 1 to 65536"),
        (RNG, ("-s", "/tmp/x", "-m", "0"), "argument -m/--max-bytes: 0 is not at least 1"),
        (RNG, ("-s", "/tmp/x", "--seed=1", "-f", "/dev/zero"), "not allowed with argument"),
        (RNG, ("-s", "/tmp/x", "--poll-us=1", "--poll-always"), "not allowed with argument"),
        (RNG, ("-s", "/tmp/x", "--poll-us=1000001"), "argument --poll-us: 1000001 is not from 0 to 1000000"),
        (RNG, ("-s", "/tmp/x", "--cpus=0,b"), "argument --cpus: '0,b': numbers and ranges of processors"),
        (RNG, ("-s", "/tmp/x", "--workers=0"), "argument --workers: 0 is not from 1 to 256"),
        (RNG, ("-s", "/tmp/x", "--socket"), "unrecognized arguments: --socket"),
        (BLK, ("-s", "/tmp/x"), "one of the arguments -b/--blk-file --memory --null is required"),
        (BLK, ("-s", "/tmp/x", "-b", "i", "--null=1G"), "--null: not allowed with argument -b/--blk-file"),
        (BLK, ("-s", "/tmp/x", "--null=1G", "--memory=1G"), "--memory: not allowed with argument --null"),
        (
            BLK,
            ("-s", "/tmp/x", "--null=1X"),
            "argument --null: '1X': a number of bytes, or one with K, M, G, T",
        ),
        (BLK, ("-s", "/tmp/x", "--memory=much"), "argument --memory: 'much': a number of bytes"),
        (BLK, ("-s", "/tmp/x", "-b", "i", "--io=fast"), "argument --io: invalid choice: 'fast'"),
        (BLK, ("-s", "/tmp/x", "-b", "i", "--num-queues=0"), "--num-queues: 0 is not from 1 to 256"),
        (BLK, ("-s", "/tmp/x", "-b", "i", "-c", "2"), "unrecognized arguments: -c 2"),
        (NET, ("-s", "/tmp/x", "--num-queues=129"), "argument --num-queues: 129 is not from 1 to 127"),
        (NET, ("-s", "/tmp/x", "--generate=17"), "argument --generate: 17 is not from 18 to 65550"),
        (NET, ("-s", "/tmp/x", "--mtu=67"), "argument --mtu: 67 is not from 68 to 65535"),
        (NET, ("-s", "/tmp/x", "--mac=52:54:00:12:34"), "'52:54:00:12:34': six bytes are needed"),
        (NET, ("-s", "/tmp/x", "--mac=ff:ff:ff:ff:ff:ff"), "is not the address of one station"),
        (NET, ("-s", "/tmp/x", "--respond=10.0.2.1/24"), "argument --respond: 10.0.2.1/24 has host bits set"),
        (NET, ("-s", "/tmp/x", "--respond=10.0.2.0/31"), "10.0.2.0/31 has no room for a guest"),
        (
            NET,
            ("-s", "/tmp/x", "--tap=a", "--respond=10.0.2.0/24"),
            "--respond: not allowed with argument --tap",
        ),
        (NET, ("-s", "/tmp/x", "--discard", "--generate=64"), "not allowed with argument --discard"),
        (
            RNG,
            ("-s", "/tmp/x", "--features=+flush"),
            "--features: there is no feature 'flush'; there are log,",
        ),
        (BLK, ("-s", "/tmp/x", "--null=1M", "--features=flush"), "'flush': write +flush to offer a feature"),
        (
            BLK,
            ("-s", "/tmp/x", "--null=1M", "--features", "-flash"),
            "there is no feature 'flash'; there are",
        ),
        (NET, ("-s", "/tmp/x", "--features", "+protocol.mqq"), "'protocol.mqq'; there are csum, guest-csum"),
        (NET, ("-s", "/tmp/x", "--features"), "argument --features: expected one argument"),
        (NET, ("-s", "/tmp/x", "--features", "--help"), "argument --features: expected one argument"),
        (
            RNG,
            ("-s", "/tmp/x", "--quirk=odd"),
            "--quirk: there is no quirk 'odd'; there are inflight-20, full-",
        ),
        (NET, ("-s", "/tmp/x", "--quirk", "-odd"), "argument --quirk: there is no quirk 'odd'; there are"),
        ("vhost", ("bench", "--quirk", "odd"), "argument --quirk: there is no quirk 'odd'; there are"),
        ("vhost", ("bench", "control", "vhost-rng", "--quirk=shmem-bit-21"), "the same with every --quirk"),
        ("vhost", ("demo", "--size=0"), "argument --size: 0 is not from 1 to 1048576"),
        ("vhost", ("frobnicate",), "invalid choice: 'frobnicate'"),
    ],
)
def test_mistakes_end_with_status_2(module: str, options: tuple[str, ...], message: str) -> None:
    done = run(module, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_unreadable_log_setting_is_a_mistake() -> None:
    done = run(RNG, "-s", "/tmp/x", env=environment(VHOST_LOG="vhost=loud"))
    assert done.returncode == 2
    assert "VHOST_LOG: 'vhost=loud' is neither LEVEL nor LOGGER=LEVEL" in done.stderr


def failure(module: str, *options: str, env: dict[str, str] | None = None) -> str:
    """The one line of a program that fails with status 1."""
    done = run(module, *options, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (RNG, ("--features=+protocol.config",), "rng cannot offer protocol.config here; it can offer log,"),
        (BLK, ("--null=1M", "--features=+size-max"), "blk cannot offer size-max here; it can offer seg-max,"),
        (BLK, ("--null=1M", "--features=-packed,+ring-reset"), "blk cannot offer ring-reset here"),
        (NET, ("--features=+protocol.status",), "net cannot offer protocol.status here"),
    ],
)
def test_a_feature_that_cannot_be_had(
    tmp_path: Path, module: str, options: tuple[str, ...], message: str
) -> None:
    assert message in failure(module, f"--socket-path={tmp_path}/s", *options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (RNG, ("iommu", "in-order")),
        (BLK, ("discard", "packed")),
        (NET, ("mrg-rxbuf", "ctrl-vq", "event-idx")),
    ],
)
def test_help_lists_the_features(module: str, names: tuple[str, ...]) -> None:
    listed = run(module, "--help").stdout.split("features, for --features:")[1].split("\n\n")[0]
    known = [name.strip() for name in listed.split(",")]
    assert {*names, "protocol.mq"} <= set(known)
    assert "ring-reset" not in known


@pytest.mark.parametrize("program", [(RNG,), (BLK,), (NET,), ("vhost", "bench")])
def test_quirks_are_listed(program: tuple[str, ...]) -> None:
    done = run(*program, "--quirk", "help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split(" ", 1)[0].replace("-", "_") for line in listed] == list(table())
    assert "packed-base-16 (off), DPDK:" in done.stdout
    assert "full-mem-table (on), " in done.stdout


def test_missing_image(tmp_path: Path) -> None:
    line = failure(BLK, f"--socket-path={tmp_path}/s", "--blk-file=/nonexistent.img")
    assert line == "vhost-blk: error: /nonexistent.img: No such file or directory"
    assert not (tmp_path / "s").exists()


def test_missing_source(tmp_path: Path) -> None:
    line = failure(RNG, f"--socket-path={tmp_path}/s", "--rng-source=/nonexistent")
    assert line == "vhost-rng: error: /nonexistent: No such file or directory"


def test_things_that_are_no_disk(tmp_path: Path) -> None:
    assert "neither a regular file nor a block device" in failure(BLK, "-s", "/x", "-b", str(tmp_path))
    (tmp_path / "empty").touch()
    assert "0 bytes are no disk" in failure(BLK, "-s", "/x", "-b", str(tmp_path / "empty"))


def test_quota_that_cannot_be_split() -> None:
    assert "--max-bytes=2 leaves nothing for some of 3 sockets" in failure(RNG, "-s", "/x", "-c3", "-m2")


def test_socket_in_use(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert f"another process listens on {path}" in failure(RNG, "-s", str(path))
    assert path.exists()


def test_path_taken_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    assert "exists and is no socket" in failure(RNG, "-s", str(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "precious"


def test_no_such_folder(tmp_path: Path) -> None:
    line = failure(RNG, "-s", str(tmp_path / "no" / "s"))
    assert line.endswith(f"cannot listen on {tmp_path}/no/s: No such file or directory")


def test_descriptor_that_is_no_socket() -> None:
    assert "fd 0 cannot be used as a socket" in failure(RNG, "--fd=0")


def test_listen_fds_for_another_process() -> None:
    line = failure(RNG, env=environment(LISTEN_FDS="1", LISTEN_PID=str(os.getpid())))
    assert f"LISTEN_PID is {os.getpid()}, but this is process" in line


def test_vhost_alone_prints_help() -> None:
    done = run("vhost")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("vhost", "--help").stdout
    assert "demo" in done.stdout


def test_version_names_the_build() -> None:
    done = run("vhost", "--version")
    assert (done.returncode, done.stdout) == (0, describe() + "\n")
    assert done.stdout.startswith(f"vhost {__version__} (memory: ")


@pytest.mark.parametrize("module", [RNG, BLK, NET])
def test_help_and_capabilities_load_no_core(module: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--print-capabilities']\n"
        f"try:\n    runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "sys.exit('vhost._core' in sys.modules or 'asyncio' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize(("module", "options"), [(RNG, ()), (BLK, ("--null=1M",)), (NET, ())])
def test_a_daemon_listens_before_it_loads_the_protocol(
    tmp_path: Path, module: str, options: tuple[str, ...]
) -> None:
    code = (
        "import runpy, socket, sys\n"
        "def listen(self, *args):\n"
        "    sys.exit('vhost._core' not in sys.modules or 'vhost.protocol' in sys.modules)\n"
        "socket.socket.listen = listen\n"
        f"sys.argv = ['x', '--socket-path={tmp_path}/s', *{options!r}]\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
