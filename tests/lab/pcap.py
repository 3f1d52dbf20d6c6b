# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Files of recorded frames, as tcpdump and DPDK read and write them (draft-ietf-opsawg-pcap)."""

import struct
from collections.abc import Iterable
from pathlib import Path

__all__ = ("read", "write")

MICROSECONDS, NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
ETHERNET = 1


def write(path: Path, frames: Iterable[bytes]) -> None:
    """Makes a file with these frames, all of the same time."""
    records = (struct.pack("=IIII", 0, 0, len(frame), len(frame)) + frame for frame in frames)
    path.write_bytes(struct.pack("=IHHiIII", MICROSECONDS, 2, 4, 0, 0, 1 << 18, ETHERNET) + b"".join(records))


def read(path: Path) -> list[bytes]:
    """The complete records of a file that somebody may still write.

    :raises AssertionError: it is no such file of Ethernet frames, or a frame was cut off.
    """
    data = path.read_bytes()
    magic, major, _, _, _, _, link = struct.unpack_from("=IHHiIII", data)
    assert (magic in (MICROSECONDS, NANOSECONDS), major, link) == (True, 2, ETHERNET), data[:24].hex()
    frames, at = [], 24
    while at + 16 <= len(data):
        _, _, here, whole = struct.unpack_from("=IIII", data, at)
        assert here == whole, f"frame {len(frames)} has {whole} bytes, of which {here} were recorded"
        if at + 16 + here > len(data):
            break
        frames.append(data[at + 16 :][:here])
        at += 16 + here
    return frames
