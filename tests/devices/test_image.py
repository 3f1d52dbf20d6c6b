# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Images as disks: sizes, discard, zeroes, and what is refused."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vhost.devices import image as image_module
from vhost.devices.image import Image
from vhost.errors import DeviceError

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xaa" * MIB)
    return path


def test_size_is_in_whole_sectors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(1024 + 7))
    disk = Image(path)
    assert disk.size == 1024
    disk.close()
    assert "the last 7 bytes are less than a sector and stay out" in caplog.text


@pytest.mark.parametrize("size", [0, 511])
def test_image_without_a_sector_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "empty.img"
    path.write_bytes(bytes(size))
    with pytest.raises(DeviceError, match=rf"{size} bytes are no disk; .* truncate"):
        Image(path)


@pytest.mark.parametrize("read_only", [False, True])
def test_neither_file_nor_block_device(tmp_path: Path, read_only: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(DeviceError, match="neither a regular file nor a block device"):
            Image(path, read_only=read_only)


def test_refused_image_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DeviceError):
        Image(tmp_path / "empty.img")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_read_only_disk_is_opened_for_reading_only(image: Path) -> None:
    disk = Image(image, read_only=True)
    assert not disk.can_discard
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(disk.fd, b"x", 0)
    disk.close()


def test_discard_gives_space_back_and_keeps_the_size(image: Path) -> None:
    disk = Image(image)
    if not disk.can_discard:
        pytest.skip("this file system cannot punch holes")
    before = image.stat().st_blocks
    disk.discard(0, MIB // 2)
    assert image.stat().st_blocks < before
    assert image.stat().st_size == MIB
    assert image.read_bytes() == bytes(MIB // 2) + b"\xaa" * (MIB // 2)
    disk.close()


@pytest.mark.parametrize("unmap", [False, True])
def test_zero_clears_exactly_the_range(image: Path, unmap: bool) -> None:
    disk = Image(image)
    disk.zero(512, 1024, unmap=unmap)
    assert image.read_bytes() == b"\xaa" * 512 + bytes(1024) + b"\xaa" * (MIB - 1536)
    disk.close()


@pytest.mark.parametrize("unmap", [False, True])
def test_zero_gives_space_back_only_if_told_to(image: Path, unmap: bool) -> None:
    disk = Image(image)
    if not disk.can_discard:
        pytest.skip("this file system cannot punch holes")
    disk.flush()
    before = image.stat().st_blocks
    disk.zero(0, MIB, unmap=unmap)
    disk.flush()
    assert (image.stat().st_blocks < before) is unmap
    assert image.read_bytes() == bytes(MIB)
    disk.close()


def refuse(code: int) -> Callable[..., None]:
    def fallocate(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    return fallocate


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_zeroes_are_written_where_the_file_system_has_no_better_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(image_module, "fallocate", refuse(code))
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xaa" * (4 * MIB))
    disk = Image(path)
    assert not disk.can_discard
    disk.zero(MIB - 512, 2 * MIB + 1024, unmap=True)
    expected = b"\xaa" * (MIB - 512) + bytes(2 * MIB + 1024) + b"\xaa" * (MIB - 512)
    assert path.read_bytes() == expected
    disk.close()


def test_errors_of_the_host_are_not_hidden(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Image(image)
    monkeypatch.setattr(image_module, "fallocate", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        disk.zero(0, 512, unmap=False)
    assert image.read_bytes() == b"\xaa" * MIB
    disk.close()


def test_close_twice(image: Path) -> None:
    disk = Image(image)
    disk.close()
    other = os.open(image, os.O_RDONLY)  # likely the same number again
    disk.close()
    os.fstat(other)
    os.close(other)
