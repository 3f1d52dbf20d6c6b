# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A conversation with one backend: guest memory, what was negotiated, and the rings.

Everything that may have to wait is an exchange; :class:`vhost.frontend.frontend.Frontend` and
:class:`vhost.frontend.aio.AsyncFrontend` run them.
"""

import os
import socket
from collections.abc import Sequence
from typing import TypeAlias

from vhost.protocol import (
    ConfigReply,
    GetConfig,
    GetFeatures,
    GetVringBase,
    ProtocolFeature,
    ResetDevice,
    SetConfig,
    SetVringEnable,
    VirtioFeature,
    VringBase,
)

from .exchange import Dial, Exchange
from .link import Link
from .negotiate import Negotiated, Options, negotiate, share
from .ram import GuestRam
from .ring import Data, Ring, parts
from .vring import Vring

__all__ = ("Session", "Target")

#: Where a backend is: the path of its socket, or a connected socket, which the session closes.
Target: TypeAlias = str | os.PathLike[str] | socket.socket


class Session:
    """All that belongs to a connection; :meth:`close` leaves nothing of it."""

    def __init__(self, target: Target, options: Options) -> None:
        self.options = options
        self.ram = GuestRam(options.ram_size)
        self.negotiated = Negotiated(0, 0, 0, 0, None)
        self.rings: list[Ring] = []
        try:
            self._path = None if isinstance(target, socket.socket) else os.fspath(target)
            self.link = Link(target if isinstance(target, socket.socket) else socket.socket(socket.AF_UNIX))
        except BaseException:
            self.ram.close()
            raise

    def open(self) -> Exchange[None]:
        """Connect, negotiate, share memory, start the rings."""
        options = self.options
        if self._path is not None:
            yield Dial(self.link.sock, self._path)
        self.negotiated = yield from negotiate(self.link, options)
        yield from share(self.link, self.ram, slots=options.slots)
        for index in range(options.queues):
            vring = Vring(
                index,
                options.queue_size,
                self.ram,
                event_idx=bool(self.negotiated.features & VirtioFeature.RING_EVENT_IDX),
                indirect=bool(self.negotiated.features & VirtioFeature.RING_INDIRECT_DESC),
            )
            self.rings.append(Ring(vring, self.ram, self.link))
            yield from self.start(index)
        if not self.negotiated.protocol_features & ProtocolFeature.REPLY_ACK:
            # Nothing above was acknowledged. The answer to this one shows that the backend got over it all.
            yield from self.link.ask(GetFeatures())

    def start(self, index: int, base: int | None = None) -> Exchange[None]:
        """Start ring `index` where it stopped, or at `base`."""
        ring = self.ring(index)
        if ring.running:
            raise ValueError(f"queue {index} is running; stop it first")
        for message, fds in ring.setup(base):
            yield from self.link.exchange(message, fds)
        if self.negotiated.features & VirtioFeature.PROTOCOL_FEATURES:
            yield from self.link.exchange(SetVringEnable(index, 1))
        ring.started()

    def stop(self, index: int) -> Exchange[int]:
        """Stop ring `index`; the base to go on from."""
        ring = self.ring(index)
        answer = yield from self.link.exchange(GetVringBase(index))
        if not isinstance(answer, VringBase) or answer.index != index:
            raise self.link.out_of_step(f"GET_VRING_BASE of queue {index} was answered with {answer}")
        ring.stopped(answer.base)
        return answer.base

    def reset(self) -> Exchange[None]:
        """Put the device back into its first state; the rings stop, and start from scratch."""
        yield from self.link.exchange(ResetDevice())
        for ring in self.rings:
            ring.reset()

    def ring(self, index: int) -> Ring:
        """The ring `index`, one of those that the session started."""
        if not 0 <= index < len(self.rings):
            raise IndexError(
                f"queue {index}: this session has {len(self.rings)}; connect with queues={index + 1}"
            )
        return self.rings[index]

    def config(self, offset: int, size: int) -> Exchange[bytes]:
        """Read the configuration space.

        :raises RefusedError: the device has no such part of it.
        """
        answer = yield from self.link.exchange(GetConfig(offset, size, 0))
        if not isinstance(answer, ConfigReply):
            raise self.link.out_of_step(f"GET_CONFIG was answered with {answer}")
        if len(answer.data) != size or answer.offset != offset:
            raise self.link.out_of_step(
                f"GET_CONFIG of {size} bytes at {offset} was answered with "
                f"{len(answer.data)} at {answer.offset}"
            )
        return answer.data

    def set_config(self, offset: int, data: bytes) -> Exchange[None]:
        """Write the configuration space, as a driver does."""
        yield from self.link.exchange(SetConfig(offset, 0, data))

    def request(
        self, readable: Data | Sequence[Data], writable: int | Sequence[int], queue: int
    ) -> Exchange[bytes]:
        """One request on a queue, from submission to what the device wrote."""
        return (yield from self.ring(queue).request(*parts(readable, writable)))

    def close(self) -> None:
        """Close and unmap everything; the backend sees the end of the connection."""
        self.link.close()
        for ring in self.rings:
            ring.close()
        self.rings.clear()
        self.ram.close()
