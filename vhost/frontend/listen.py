# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Waits for a backend that connects, and drives it: the other way round, and the same from there on."""

import os
from typing import TypedDict, Unpack

from vhost.io import Listener
from vhost.protocol import Quirks

from .aio import AsyncFrontend, opened_async
from .frontend import Frontend, opened
from .iommu import Iommu
from .negotiate import Options
from .session import Session

__all__ = ("Wishes", "listen", "listen_async")


class Wishes(TypedDict, total=False):
    """Parameters of :func:`vhost.connect` that go to a session as they are."""

    features: int | None
    protocol_features: int | None
    queues: int
    queue_size: int
    ram_size: int
    event_idx: bool
    indirect: bool
    slots: bool
    regions: int
    packed: bool
    in_order: bool
    big_endian: bool
    kick: bool
    call: bool
    inflight: bool | None
    reconnect: float
    iommu: Iommu | None


def listen(
    path: str | os.PathLike[str],
    *,
    timeout: float | None = 10.0,
    quirks: str = "",
    **wishes: Unpack[Wishes],
) -> Frontend:
    """Listen at `path`, wait for a backend to connect, and drive it.

    ::

        with listen("/run/rng.sock") as device:  # vhost-rng --connect /run/rng.sock
            print(device.request(writable=16))

    The socket is made for the owner and the group, replaces that of a process that died, and is removed when
    the frontend is closed. A backend that went away connects again: with ``reconnect=``, or at
    :meth:`Frontend.reconnect`, the frontend waits for it.

    :param timeout: seconds for this call, the wait included, and for each later one; None: no limit.
    :param quirks: as for :func:`vhost.connect`.
    :param wishes: everything else that :func:`vhost.connect` takes.
    :raises TimeoutError: no backend has connected, or it took too long.
    :raises OSError: `path` is in use, or is something else; and otherwise like :func:`vhost.connect`.
    """
    return opened(_session(path, Options(quirks=Quirks.choose(quirks), **wishes)), timeout)


async def listen_async(
    path: str | os.PathLike[str],
    *,
    timeout: float | None = 10.0,
    quirks: str = "",
    **wishes: Unpack[Wishes],
) -> AsyncFrontend:
    """:func:`listen` for an event loop: the same parameters, the same exceptions."""
    return await opened_async(_session(path, Options(quirks=Quirks.choose(quirks), **wishes)), timeout)


def _session(path: str | os.PathLike[str], options: Options) -> Session:
    listener = Listener(path)
    try:
        return Session(listener, options)
    except BaseException:
        listener.close()
        raise
