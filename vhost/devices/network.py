# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Networks: where the frames of a network device go to, and where they come from.

A network gives each queue its data path in the C core, a structure that begins with ``struct vh_net``.
"""

from typing import Any

from vhost._core import ffi, lib
from vhost.errors import DeviceError

__all__ = ("Network", "Discard", "FRAME_MAX", "FRAME_MIN")

#: Bytes of a frame, without the header of virtio: an Ethernet header, and the largest packet behind one.
FRAME_MIN = int(lib.VH_NET_FRAME_MIN)
FRAME_MAX = int(lib.VH_NET_FRAME_MAX)

_NUMBERED = int(lib.VH_NET_NUMBERED)
# IEEE 802, local experimental EtherType 1.
_ETHERTYPE = b"\x88\xb5"
_TO, _FROM = b"\xff" * 6, bytes.fromhex("020000000001")


class Network:
    """What is behind the network device of one guest. It outlives connections, as its device does."""

    #: Pairs of a receiving and a sending queue.
    pairs: int = 1
    #: Feature bits of offloads that it can do.
    features: int = 0
    #: Whether a pcap file gets what is received, beside what is sent.
    records: bool = True

    def negotiated(self, features: int, header: int) -> None:
        """The driver has acknowledged `features`; `header` bytes are in front of each of its frames."""

    def sender(self, pair: int) -> Any:
        """What becomes of what the guest sends: a new ``struct vh_net``, or another that begins with one."""
        raise NotImplementedError

    def receiver(self, pair: int) -> Any:
        """Where what the guest receives comes from, likewise."""
        raise NotImplementedError

    def enabled(self, pair: int) -> None:
        """The receiving queue of `pair` is enabled now, and not served while this runs."""

    def event_fd(self, pair: int) -> int:
        """A descriptor that is readable when there is something to receive, -1: there always is, or never."""
        return -1

    def active(self, pairs: int) -> None:
        """So many receiving queues are in use now, from the first on; 0: the guest has gone."""

    def moved(self, old: bytes | None, new: bytes) -> None:
        """The guest has the address `new` now; `old` is None if none was known. From any thread."""

    def process(self, pair: int, frame: bytes) -> None:
        """Take a frame that the C core has left; called by the thread of the sending queue."""
        raise DeviceError(f"{type(self).__name__} takes no frames in Python")

    def close(self) -> None:
        """Give back what the network holds."""


class Discard(Network):
    """What the guest sends vanishes; it receives nothing, or frames with a number each, at full speed.

    :param generate: bytes of each frame, 18 at least, None: no frames.
    :raises DeviceError: there are no frames of this size.
    """

    def __init__(self, *, pairs: int = 1, generate: int | None = None) -> None:
        if generate is not None and not _NUMBERED <= generate <= FRAME_MAX:
            raise DeviceError(f"numbered frames of {generate} bytes: they have {_NUMBERED} to {FRAME_MAX}")
        self.pairs = pairs
        self._size = generate
        self._frames: dict[int, Any] = {}  # by pair

    def sender(self, pair: int) -> Any:
        net = ffi.new("struct vh_net *")
        lib.vh_net_discard(net)
        return net

    def receiver(self, pair: int) -> Any:
        generator = ffi.new("struct vh_net_generator *")
        if self._size is None:
            lib.vh_net_silence(ffi.addressof(generator.net))
        else:
            frame = ffi.new("uint8_t[]", self._size)
            ffi.memmove(frame, _TO + _FROM + _ETHERTYPE, FRAME_MIN)
            self._frames[pair] = frame
            generator.frame, generator.len = frame, self._size
            lib.vh_net_generate(generator)
        return generator
