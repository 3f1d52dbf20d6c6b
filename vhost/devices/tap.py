# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A TAP interface of the kernel as the network of a guest: frames and their headers pass through unchanged.

So the kernel computes checksums and cuts segments for the guest, and the guest does for the kernel, as far as
its driver has negotiated.
"""

import errno
import fcntl
import logging
import os
import struct
import sys
from collections.abc import Sequence
from typing import Any

from vhost._core import ffi, lib
from vhost.devices.network import FRAME_MAX, Network
from vhost.errors import DeviceError
from vhost.virtio.net import NetFeature

__all__ = ("Tap",)

_log = logging.getLogger(__name__)

_DEVICE = "/dev/net/tun"
_IFREQ = struct.Struct("=16sH22x")

# What the driver can take is what the kernel may leave to it (TUNSETOFFLOAD).
_OFFLOADS = (
    (NetFeature.GUEST_CSUM, lib.TUN_F_CSUM),
    (NetFeature.GUEST_TSO4, lib.TUN_F_TSO4),
    (NetFeature.GUEST_TSO6, lib.TUN_F_TSO6),
    (NetFeature.GUEST_ECN, lib.TUN_F_TSO_ECN),
)
_SEGMENTS = NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_ECN


class Tap(Network):
    """An interface by its name, which is made if it is not there, or by descriptors that are attached to one.

    :param name: of the interface; the kernel fills in a ``%d``.
    :param fds: in its place, a descriptor for each pair of queues; owned from here on.
    :param pairs: queues of the interface, if it is given by name.
    :raises OSError: there is no TAP, no permission, or the interface is used by somebody else.
    :raises DeviceError: a descriptor is no TAP interface with headers (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR).
    """

    features = int(NetFeature.CSUM | _SEGMENTS | NetFeature(sum(bit for bit, _ in _OFFLOADS)))

    def __init__(self, name: str | None = None, *, fds: Sequence[int] = (), pairs: int = 1) -> None:
        if (name is None) == (not fds):
            raise ValueError("give either a name or descriptors")
        self._fds = list(fds)
        try:
            if name is not None:
                self.name = _attach(name, pairs, self._fds)
            else:
                self.name = _check(self._fds)
            for fd in self._fds:
                os.set_blocking(fd, False)
            self.pairs = len(self._fds)
            self._attached = [True] * self.pairs
            self._spare: dict[int, Any] = {}  # of each receiving queue
            self._set(0, 12)
        except BaseException:
            self.close()
            raise

    def negotiated(self, features: int, header: int) -> None:
        try:
            self._set(features, header)
        except OSError as error:  # somebody has deleted it: the guest has a cable that ends nowhere
            _log.warning("TAP interface %s: %s", self.name, error.strerror)

    def _set(self, features: int, header: int) -> None:
        offloads = 0
        if features & NetFeature.GUEST_CSUM:  # the others need it
            offloads = sum(flag for bit, flag in _OFFLOADS if features & bit)
        if not offloads & (lib.TUN_F_TSO4 | lib.TUN_F_TSO6):
            offloads &= ~lib.TUN_F_TSO_ECN  # which the kernel refuses alone
        fd = self._fds[0]  # what is set counts for the whole interface
        fcntl.ioctl(fd, lib.TUNSETVNETHDRSZ, struct.pack("=i", header))
        if sys.byteorder == "big":
            fcntl.ioctl(fd, lib.TUNSETVNETLE, struct.pack("=i", 1))  # as the C core has it
        fcntl.ioctl(fd, lib.TUNSETOFFLOAD, offloads)
        self._need = header + FRAME_MAX

    def sender(self, pair: int) -> Any:
        tap = ffi.new("struct vh_net_tap *", {"fd": self._fds[pair]})
        lib.vh_net_tap_send(tap)
        return tap

    def receiver(self, pair: int) -> Any:
        self._spare[pair] = ffi.new("uint8_t[]", self._need + 1)
        tap = ffi.new(
            "struct vh_net_tap *", {"fd": self._fds[pair], "need": self._need, "spare": self._spare[pair]}
        )
        lib.vh_net_tap_receive(tap)
        return tap

    def event_fd(self, pair: int) -> int:
        return self._fds[pair]

    def active(self, pairs: int) -> None:
        # The kernel deals flows out over all queues that are attached, so nobody's are to be taken off.
        if self.pairs == 1:
            return
        for pair, fd in enumerate(self._fds):
            wanted = pair < max(pairs, 1)
            if wanted != self._attached[pair]:
                flag = lib.IFF_ATTACH_QUEUE if wanted else lib.IFF_DETACH_QUEUE
                try:
                    fcntl.ioctl(fd, lib.TUNSETQUEUE, _IFREQ.pack(b"", flag))
                except OSError as error:  # the interface is gone, or nothing is lost but some frames
                    _log.warning("%s: queue %d stays as it is: %s", self.name, pair, error.strerror)
                    return
                self._attached[pair] = wanted

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def _attach(name: str, pairs: int, fds: list[int]) -> str:
    # An interface that was made for one queue, or for many, is opened in no other way.
    wanted = lib.IFF_TAP | lib.IFF_NO_PI | lib.IFF_VNET_HDR
    ways = (wanted | lib.IFF_MULTI_QUEUE,) if pairs > 1 else (wanted, wanted | lib.IFF_MULTI_QUEUE)
    if not 0 < len(name.encode()) < 16:
        raise DeviceError(f"{name!r}: the name of an interface has 1 to 15 bytes")
    for flags in ways:
        fds.append(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        try:
            answer = fcntl.ioctl(fds[-1], lib.TUNSETIFF, _IFREQ.pack(name.encode(), flags))
            break
        except OSError as error:
            os.close(fds.pop())
            if error.errno != errno.EINVAL or flags == ways[-1]:
                raise OSError(error.errno, f"TAP interface {name}: {error.strerror}") from None
    name = _IFREQ.unpack(answer)[0].rstrip(b"\0").decode()
    for _ in range(pairs - 1):
        fds.append(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        fcntl.ioctl(fds[-1], lib.TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    return str(name)


def _check(fds: Sequence[int]) -> str:
    names = set()
    needed = lib.IFF_TAP | lib.IFF_NO_PI | lib.IFF_VNET_HDR
    for fd in fds:
        try:
            name, flags = _IFREQ.unpack(fcntl.ioctl(fd, lib.TUNGETIFF, bytes(_IFREQ.size)))
        except OSError as error:
            raise DeviceError(f"descriptor {fd} is no TAP interface: {error.strerror}") from None
        if flags & needed != needed:
            raise DeviceError(
                f"descriptor {fd} has flags {flags:#x}; "
                f"IFF_TAP, IFF_NO_PI and IFF_VNET_HDR ({needed:#x}) are needed"
            )
        names.add(name.rstrip(b"\0").decode())
    if len(names) > 1:
        raise DeviceError(f"the descriptors belong to {len(names)} interfaces: {', '.join(sorted(names))}")
    return str(names.pop())
