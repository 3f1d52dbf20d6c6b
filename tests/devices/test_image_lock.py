# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Who may open an image together with whom, our own programs and those with QEMU's locks."""

import fcntl
import os
import struct
import threading
from pathlib import Path

import pytest

from vhost.devices import image_lock
from vhost.devices.image import Image
from vhost.errors import DeviceError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_lock, "_PATIENCE", 0.0)


def test_who_goes_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_lock, "_PATIENCE", 10.0)
    first = Image(path)
    threading.Timer(0.1, first.close).start()
    Image(path).close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    return tmp_path / "disk.img"


@pytest.mark.parametrize("io", ["sync", "uring", "map"])
def test_two_writers(path: Path, io: str) -> None:
    first = Image(path, io=io)  # type: ignore[arg-type]
    with pytest.raises(
        DeviceError, match=r"disk\.img: another program has it open for writing; end that one"
    ):
        Image(path)
    with pytest.raises(DeviceError, match="has it open for writing"):
        Image(path, read_only=True)
    Image(path, lock=False).close()
    first.close()
    Image(path).close()


def test_readers_go_together_and_keep_writers_out(path: Path) -> None:
    readers = [Image(path, read_only=True) for _ in range(3)]
    with pytest.raises(DeviceError, match="another program reads it and does not expect it to change"):
        Image(path)
    for reader in readers:
        reader.close()
    Image(path).close()


def test_refused_image_is_closed(path: Path) -> None:
    first = Image(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DeviceError):
        Image(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    first.close()


# What qemu-system has of an image: consistent reads are permission 0, writes 1; kept from others from 200 on.
@pytest.mark.parametrize(
    ("locked", "read_only", "possible"),
    [
        ((100, 101, 201, 203), False, False),  # it writes
        ((100, 101, 201, 203), True, False),
        ((100, 201, 203), False, False),  # it reads, for a guest
        ((100, 201, 203), True, True),
        ((100,), False, True),  # it looks, with force-share
        ((101,), False, False),  # it writes, and would let others write
        ((), False, True),
    ],
)
def test_locks_of_qemu(path: Path, locked: tuple[int, ...], read_only: bool, possible: bool) -> None:
    fd = os.open(path, os.O_RDWR)
    for byte in locked:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("@hhqqi0q", fcntl.F_RDLCK, 0, byte, 1, 0))
    if possible:
        Image(path, read_only=read_only).close()
    else:
        with pytest.raises(DeviceError, match="another program"):
            Image(path, read_only=read_only)
    os.close(fd)


def test_other_locks_are_respected(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("@hhqqi0q", fcntl.F_WRLCK, 0, 0, 0, 0))
    with pytest.raises(DeviceError, match="another program"):
        Image(path)
    os.close(fd)


def test_file_systems_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    Image(path).close()
