# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Sources of random bytes."""

import hashlib
import os
from pathlib import Path

import pytest

from vhost.devices.entropy import FileSource, SeededSource
from vhost.errors import DeviceError


def drain(source: SeededSource, sizes: list[int]) -> bytes:
    return b"".join(source(n) for n in sizes)


def test_seeded_stream_is_the_documented_one() -> None:
    expected = b"".join(hashlib.shake_256(f"42:{i}".encode()).digest(4096) for i in range(3))
    source, data = SeededSource(42), b""
    while len(data) < len(expected):
        data += source(len(expected) - len(data))
    assert data == expected


def test_seeded_stream_does_not_depend_on_the_request_sizes() -> None:
    one, other = SeededSource(-1), SeededSource(-1)
    assert drain(one, [1, 2, 4093]) == other(4096)
    assert SeededSource(-2)(4096) != other(4096)


def test_file_gives_its_bytes_in_order_and_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "entropy"
    path.write_bytes(b"0123456789")
    source = FileSource(path)
    assert source(4) == b"0123"
    assert source(100) == b"456789"
    with pytest.raises(DeviceError, match=r"entropy: no more bytes"):
        source(1)
    source.close()


def test_device_without_bytes_does_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    source = FileSource(path)
    writer = os.open(path, os.O_WRONLY)
    assert source(16) == b""
    os.write(writer, b"later")
    assert source(16) == b"later"
    os.close(writer)
    source.close()


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match="/nonexistent/hwrng"):
        FileSource("/nonexistent/hwrng")
