# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A virtual Ethernet switch between guests: learns where stations are, floods what it cannot place.

The frames are moved by the C core (csrc/switch.c). A guest cannot make the switch hold more than a fixed
amount of memory, wait, or forget the stations of others. No offload is offered, so every frame
is complete when it is sent; one whose header asks for a checksum or for segments is dropped and counted.
"""

import mmap
import os
import secrets
from typing import Any, Protocol

from vhost._core import ffi, lib
from vhost.devices.network import Network
from vhost.errors import DeviceError

__all__ = ("Switch", "Station")

_MAX_QUEUES = 256
# Bytes for frames under way: for all together, and for one sender and one receiver.
_MEMORY = 64 << 20
_LEAST, _MOST = 256 << 10, 1 << 20
_BUCKETS = 4096
_WAYS = 4
_LINE = 64


class Station(Protocol):
    """A station in this process that answers frames."""

    #: Its address.
    mac: bytes

    def respond(self, frame: bytes) -> list[bytes]:
        """The answers to a frame, which go to its sender. Called by several threads."""


class Switch:
    """A switch.

    :param ports: guests; `pairs`: queue pairs of each. Of all pairs there are 256 at most.
    :param station: answers frames to its address and to all.
    :param max_age: seconds after which a station that is silent is forgotten.
    :raises DeviceError: a number is out of range.
    """

    def __init__(
        self, ports: int, *, pairs: int = 1, station: Station | None = None, max_age: int = 300
    ) -> None:
        if ports < 1 or pairs < 1 or ports * pairs > _MAX_QUEUES:
            raise DeviceError(
                f"a switch of {ports} ports with {pairs} queue pairs each; "
                f"all together have 1 to {_MAX_QUEUES}"
            )
        self.pairs = pairs
        self.station = station
        fifos = (ports * pairs) ** 2
        size = min(max(1 << (_MEMORY // fifos).bit_length() - 1, _LEAST), _MOST)
        sizes = {
            "port": ports * _LINE,
            "receiver": ports * pairs * _LINE,
            "fifo": fifos * 2 * _LINE,
            "station": _BUCKETS * _WAYS * 16,
            "frames": fifos * size,
        }
        # Pages that no frame has been in cost nothing.
        self._memory = mmap.mmap(
            -1, sum(sizes.values()), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | lib.MAP_NORESERVE
        )
        self._start = ffi.from_buffer(self._memory)
        parts, at = {}, 0
        for name, length in sizes.items():
            parts[name] = ffi.cast("void *", self._start + at)
            at += length
        self.cdata = ffi.new(
            "struct vh_switch *",
            {
                "ports": ports,
                "pairs": pairs,
                "size": size,
                "buckets": _BUCKETS,
                "seed": secrets.randbits(64),
                "quota": min(512, _BUCKETS // ports),
                "max_age": max_age,
                "mac": 0 if station is None else int.from_bytes(station.mac),
                **parts,
            },
        )
        self.event_fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(ports * pairs)]
        for index, fd in enumerate(self.event_fds):
            self.cdata.receiver[index].fd = fd
        self._open = ports
        #: The network of each guest.
        self.ports = [_Port(self, index) for index in range(ports)]

    def where(self, mac: bytes) -> int | None:
        """The port at which the station with this address was last heard."""
        port = lib.vh_switch_find(self.cdata, int.from_bytes(mac))
        return None if port < 0 else port

    def port_closed(self) -> None:
        """One of the ports is used no more; with the last, the switch gives back what it holds."""
        self._open -= 1
        if not self._open:
            for fd in self.event_fds:
                os.close(fd)


class _Port(Network):
    # A port of a switch.
    records = False  # what is received was sent by somebody

    def __init__(self, switch: Switch, index: int) -> None:
        self.pairs = switch.pairs
        self._switch = switch
        self._index = index
        self._senders: dict[int, Any] = {}
        self._receivers: dict[int, Any] = {}
        self._touched: dict[int, Any] = {}

    def _queue(self, pair: int) -> Any:
        init = {"hub": self._switch.cdata, "port": self._index, "pair": pair}
        return ffi.new("struct vh_net_port *", init)

    def sender(self, pair: int) -> Any:
        port = self._senders[pair] = self._queue(pair)
        self._touched[pair] = port.touched = ffi.new("uint32_t[]", len(self._switch.event_fds))
        lib.vh_port_send(port)
        return port

    def receiver(self, pair: int) -> Any:
        port = self._receivers[pair] = self._queue(pair)
        lib.vh_port_receive(port)
        return port

    def enabled(self, pair: int) -> None:
        lib.vh_port_reset(self._receivers[pair])

    def event_fd(self, pair: int) -> int:
        return self._switch.event_fds[self._index * self.pairs + pair]

    def active(self, pairs: int) -> None:
        self._switch.cdata.port[self._index].active = pairs
        if not pairs:
            lib.vh_switch_forget(self._switch.cdata, self._index)

    def moved(self, old: bytes | None, new: bytes) -> None:
        before = 0 if old is None else int.from_bytes(old)
        lib.vh_switch_move(self._switch.cdata, self._index, before, int.from_bytes(new))

    def process(self, pair: int, frame: bytes) -> None:
        station = self._switch.station
        assert station is not None
        for answer in station.respond(frame):
            lib.vh_port_inject(self._senders[pair], answer, len(answer))

    def close(self) -> None:
        self._switch.port_closed()
