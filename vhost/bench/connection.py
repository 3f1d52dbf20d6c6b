# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A connection to a backend that is to be loaded, whoever makes the requests."""

import errno
import socket
import struct
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from vhost.errors import LocalProtocolError, VhostError
from vhost.frontend.exchange import Exchange
from vhost.frontend.session import Session
from vhost.frontend.wait import wait
from vhost.protocol import ProtocolFeature, VirtioFeature

from .workload import SECTOR, Workload

__all__ = ("Connection", "LoadError", "Run", "HANG", "NOT_YET", "peer_pid")

#: Seconds without a request back after which a load ends.
HANG: Final = 5.0
#: Errors of a connect() that may succeed soon: some backends listen anew after each connection.
NOT_YET: Final = (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET)
_TIMEOUT: Final = 10.0  # of the handshake
_SMALL_DISK: Final = 2048  # sectors of a disk that does not say how many it has


class LoadError(VhostError):
    """The load ended before its time: the backend hung, left, or broke the ring."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run brought; latencies in ns.

    :ivar driver_ns: CPU time of the driver for each request.
    :ivar sampled: requests whose data was compared.
    :ivar lost: sleeps that ended by their timeout although requests had come back.
    :ivar faults: requests with a wrong status, length or data; `fault` describes the first.
    """

    requests: int
    bytes: int
    seconds: float
    p50: float
    p99: float
    p999: float
    driver_ns: float
    kicks: int
    calls: int
    sleeps: int
    sampled: int
    lost: int
    faults: int
    fault: str

    def with_faults_of(self, other: Self) -> Self:
        """This run, and what was wrong in another one."""
        return replace(self, faults=self.faults + other.faults, fault=self.fault or other.fault)


class Connection:
    """A session whose ring and memory have room for `depth` requests.

    :ivar sectors: of a disk, as many as whole requests fill.
    :raises VhostError, OSError: as :func:`vhost.connect` does.
    """

    def __init__(self, path: str, workload: Workload, depth: int) -> None:
        self.workload, self.depth = workload, depth
        self.sectors = _SMALL_DISK
        self.session = Session(path, workload.options(depth))
        try:
            wait(self._open(), _TIMEOUT)
        except BaseException:
            self.session.close()
            raise

    def _open(self) -> Exchange[None]:
        session, work = self.session, self.workload
        yield from session.open()
        negotiated = session.negotiated
        if not negotiated.features & VirtioFeature.VERSION_1:
            raise LocalProtocolError(
                "the backend does not offer VERSION_1, without which it is not driven here"
            )
        if work.device == "blk" and negotiated.protocol_features & ProtocolFeature.CONFIG:
            (self.sectors,) = struct.unpack("<Q", (yield from session.config(0, 8)))
        self.sectors -= self.sectors % max(work.size // SECTOR, 1)
        if work.device == "blk" and not self.sectors:
            raise LocalProtocolError(f"the disk is smaller than a request of {work.size} bytes")
        if work.dirty_log:
            yield from session.log_start()

    def peer(self) -> int:
        """Process id of the backend, or of whoever listened for it."""
        return peer_pid(self.session.link.sock)

    def close(self) -> None:
        """Close the connection and release guest memory."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def peer_pid(sock: socket.socket) -> int:
    """Process id of who is connected, or listened for it."""
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)
