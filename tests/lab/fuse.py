# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A driver of a virtio file system device (virtio 1.3, 5.11) by our frontend, as far as the lab needs it.

Requests are those of FUSE, of the structures in the kernel's include/uapi/linux/fuse.h.
"""

import errno
import os
import struct
from enum import IntEnum

from vhost.frontend import Frontend

__all__ = ("ROOT", "Fuse")

ROOT = 1  # node of the shared folder
HIPRIO, REQUESTS = 0, 1  # queues

_IN = struct.Struct("<IIQQIIIHH")  # fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen
_OUT = struct.Struct("<IiQ")  # fuse_out_header: len, error, unique
_INIT = struct.Struct("<IIII")  # major, minor, max_readahead, flags
_ENTRY = struct.Struct("<QQQQII88x")  # fuse_entry_out: node, and a fuse_attr that is skipped
_OPEN = struct.Struct("<QII")  # handle, flags
_TRANSFER = struct.Struct("<QQIIQII")  # fuse_read_in and fuse_write_in: handle, offset, size, ...
_WRITTEN = struct.Struct("<II")

MAJOR, MINOR = 7, 31


class Op(IntEnum):
    """enum fuse_opcode"""

    LOOKUP = 1
    FORGET = 2
    READ = 15
    WRITE = 16
    RELEASE = 18
    INIT = 26
    CREATE = 35


class Fuse:
    """A session with a file system behind `frontend`, from FUSE_INIT on.

    :raises OSError: the device refuses.
    """

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._unique = 0
        answer = self._call(Op.INIT, 0, _INIT.pack(MAJOR, MINOR, 65536, 0), 64)
        self.version = struct.unpack_from("<II", answer)

    def lookup(self, name: str, folder: int = ROOT) -> int:
        """The node of a file."""
        return int(_ENTRY.unpack_from(self._call(Op.LOOKUP, folder, name.encode() + b"\0", _ENTRY.size))[0])

    def create(self, name: str, folder: int = ROOT) -> tuple[int, int]:
        """Makes a file. Returns its node, and a handle to write with."""
        wish = struct.pack("<IIII", os.O_RDWR, 0o100644, 0, 0) + name.encode() + b"\0"
        answer = self._call(Op.CREATE, folder, wish, _ENTRY.size + _OPEN.size)
        return _ENTRY.unpack_from(answer)[0], _OPEN.unpack_from(answer, _ENTRY.size)[0]

    def write(self, node: int, handle: int, offset: int, data: bytes) -> int:
        """Bytes that were written."""
        head = _TRANSFER.pack(handle, offset, len(data), 0, 0, os.O_RDWR, 0)
        return int(_WRITTEN.unpack(self._call(Op.WRITE, node, head + data, _WRITTEN.size))[0])

    def read(self, node: int, handle: int, offset: int, size: int) -> bytes:
        """What is there, up to the end of the file."""
        return self._call(Op.READ, node, _TRANSFER.pack(handle, offset, size, 0, 0, os.O_RDWR, 0), size)

    def release(self, node: int, handle: int) -> None:
        """Gives a handle back."""
        self._call(Op.RELEASE, node, struct.pack("<QIIQ", handle, os.O_RDWR, 0, 0), 0)

    def forget(self, node: int) -> None:
        """Gives up one look-up of a node, by the queue of high priority; FUSE answers nothing to that."""
        body = struct.pack("<Q", 1)
        self._frontend.request(self._head(Op.FORGET, node, body) + body, queue=HIPRIO)

    def _head(self, op: Op, node: int, body: bytes) -> bytes:
        self._unique += 2  # odd numbers are interrupts
        return _IN.pack(_IN.size + len(body), op, self._unique, node, os.getuid(), os.getgid(), 0, 0, 0)

    def _call(self, op: Op, node: int, body: bytes, room: int) -> bytes:
        answer = self._frontend.request(
            [self._head(op, node, body), body], [_OUT.size + room], queue=REQUESTS
        )
        size, error, unique = _OUT.unpack_from(answer)
        if error:
            raise OSError(-error, f"{op.name}: {errno.errorcode[-error]}")
        assert (size, unique) == (len(answer), self._unique), f"{op.name} is answered with {answer.hex()}"
        return answer[_OUT.size :]
