# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A pcap file (draft-ietf-opsawg-pcap): the C core appends a record for each frame."""

import os
import struct

__all__ = ("Pcap",)

_MAGIC = 0xA1B2C3D4  # times in microseconds
_VERSION = 2, 4
_SNAP_LEN = 262144
_ETHERNET = 1  # LINKTYPE_ETHERNET


class Pcap:
    """A new file at `path`, in place of one that is there.

    :ivar fd: its descriptor; whole records may be appended from several threads.
    :raises OSError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o600)
        try:
            os.write(self.fd, struct.pack("<IHHiIII", _MAGIC, *_VERSION, 0, 0, _SNAP_LEN, _ETHERNET))
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the file; nothing may be recorded any more."""
        os.close(self.fd)
