# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the requests of a benchmark are, whoever serves them."""

import enum
from dataclasses import dataclass, field
from typing import Final, Self

from vhost.frontend.negotiate import Options
from vhost.protocol import Quirks

__all__ = ("Access", "Workload", "DEVICES")

#: Types of devices that can be loaded.
DEVICES: Final = ("blk", "rng", "net")

#: Bytes of a disk's sector.
SECTOR: Final = 512
#: Bytes of the header in front of a frame (virtio 1.3, 5.1.6).
NET_HEADER: Final = 12
_LARGEST: Final = 1 << 20
_REGIONS: Final = 509  # the most that backends say they take
_QUEUE_SIZES: Final = (128, 1 << 15)
# Of a network device nothing is acknowledged that changes what a frame is: all bits of the device type.
_DEVICE_BITS: Final = (1 << 24) - 1
# Rings take this much of guest memory for each entry: descriptor, avail, used, an indirect table of 16.
_ENTRY: Final = 16 + 2 + 8 + 16 * 16
_PAGE: Final = 4096


class Access(enum.Enum):
    """What a request does, by the words of the command line."""

    READ = "read"
    WRITE = "write"
    RANDOM = "random"
    FILL = "fill"
    SEND = "send"
    RECEIVE = "receive"


_OF_DEVICE: Final = {
    "blk": (Access.RANDOM, Access.READ, Access.WRITE),
    "rng": (Access.FILL,),
    "net": (Access.SEND, Access.RECEIVE),
}
_USUAL: Final = {"blk": (Access.RANDOM, 4096), "rng": (Access.FILL, 64), "net": (Access.SEND, 64)}


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests, and the ring they travel through.

    :ivar device: one of :data:`DEVICES`.
    :ivar size: bytes of data in each request.
    :ivar queue_size: entries of the ring, None: as many as are needed, 128 or more.
    :ivar regions: how many regions guest memory has; the buffers are spread over them.
    :ivar inflight: the backend records what is in flight in a region of ours.
    :ivar dirty_log: it marks the pages it writes.
    :ivar quirks: how far to go along with the backends.
    :ivar python: the requests come from Python, as those of :func:`vhost.connect` do, and not from C.
    :raises ValueError: there is no such load.
    """

    device: str
    access: Access
    size: int
    queue_size: int | None = None
    regions: int = 1
    indirect: bool = False
    event_idx: bool = True
    packed: bool = False
    in_order: bool = False
    inflight: bool = False
    dirty_log: bool = False
    python: bool = False
    quirks: Quirks = field(default_factory=Quirks)

    def __post_init__(self) -> None:
        if self.access not in _OF_DEVICE[self.device]:
            words = ", ".join(access.value for access in _OF_DEVICE[self.device])
            raise ValueError(f"a load of {self.device} is one of {words}, not {self.access.value}")
        if not 1 <= self.size <= _LARGEST:
            raise ValueError(f"requests of {self.size} bytes: from 1 to {_LARGEST} can be made")
        if self.device == "blk" and self.size % SECTOR:
            raise ValueError(f"requests of {self.size} bytes to a disk: its sectors have {SECTOR}")
        if not 1 <= self.regions <= _REGIONS:
            raise ValueError(f"{self.regions} memory regions: from 1 to {_REGIONS} are possible")
        if self.python and self.access not in (Access.READ, Access.RANDOM, Access.FILL):
            raise ValueError(f"the driver in Python makes reads; a load of {self.access.value} comes from C")
        if self.queue_size is not None and (
            self.queue_size & (self.queue_size - 1) or not 2 <= self.queue_size <= _QUEUE_SIZES[1]
        ):
            raise ValueError(f"a queue of {self.queue_size} entries: take a power of two up to 32768")

    @classmethod
    def of(cls, device: str) -> Self:
        """The usual load of a device: random reads of 4 KiB; 64 random bytes; frames of 64 bytes sent."""
        access, size = _USUAL[device]
        return cls(device, access, size)

    @property
    def buffers(self) -> int:
        """Descriptors of a request, without an indirect table."""
        return 3 if self.device == "blk" else 1

    @property
    def queue(self) -> int:
        """Index of the queue that is loaded."""
        return 1 if self.access is Access.SEND else 0

    def entries(self, depth: int) -> int:
        """Entries of a ring that holds `depth` requests.

        :raises ValueError: there is no such ring, or the one that was asked for is too small.
        """
        need = depth if self.indirect and self.buffers > 1 else depth * self.buffers
        smallest, largest = _QUEUE_SIZES
        size = self.queue_size or max(smallest, 1 << (need - 1).bit_length())
        if not 1 <= need <= size <= largest:
            raise ValueError(f"depth {depth} takes {need} entries of the ring; it has {min(size, largest)}")
        return size

    def options(self, depth: int) -> Options:
        """How to connect for a load of `depth` requests."""
        entries = self.entries(depth)
        queues = 2 if self.device == "net" else 1
        request = -(-(self.size + NET_HEADER) // _PAGE) * _PAGE + 2 * 64
        rings = queues * (entries * _ENTRY + 4 * _PAGE)
        # The rings are in the first region; each region has its share of the buffers.
        region = rings + -(-depth // self.regions) * request + 2 * _PAGE
        return Options(
            queues=queues,
            queue_size=entries,
            ram_size=region * self.regions,
            regions=self.regions,
            event_idx=self.event_idx,
            indirect=self.indirect,
            packed=self.packed,
            in_order=self.in_order,
            inflight=self.inflight,
            quirks=self.quirks,
            avoid=_DEVICE_BITS if self.device == "net" else 0,
        )

    def __str__(self) -> str:
        match self.access:
            case Access.READ | Access.WRITE:
                what = f"sequential {self.access.value}s of {self.size} bytes"
            case Access.RANDOM:
                what = f"random reads of {self.size} bytes"
            case Access.FILL:
                what = f"requests for {self.size} bytes"
            case Access.SEND | Access.RECEIVE:
                what = f"frames of {self.size} bytes {'sent' if self.access is Access.SEND else 'received'}"
        parts = [
            f"{self.device}: {what}",
            "event idx" if self.event_idx else "no event idx",
            "indirect descriptors" if self.indirect else "direct descriptors",
        ]
        parts += [
            words
            for words, on in (
                ("packed ring", self.packed),
                ("in order", self.in_order),
                ("inflight region", self.inflight),
                ("dirty log", self.dirty_log),
                ("driver in Python", self.python),
            )
            if on
        ]
        if self.queue_size:
            parts.append(f"queue of {self.queue_size}")
        if self.regions > 1:
            parts.append(f"{self.regions} memory regions")
        return ", ".join(parts)
