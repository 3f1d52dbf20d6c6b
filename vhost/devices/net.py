# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A network device (virtio 1.3, 5.1): queue 2i receives and queue 2i+1 sends for pair i.

The control queue is the front-end's business. The C core moves the frames; what they are moved to and from is
a :class:`vhost.devices.network.Network`.
"""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

from vhost._core import ffi, lib
from vhost.devices.device import Device
from vhost.devices.network import Network
from vhost.devices.pcap import Pcap
from vhost.errors import DeviceError
from vhost.virtio.net import MTU_MAX, MTU_MIN, ConfigSpace, NetFeature, header_size
from vhost.virtqueue import Batch, Chain, Queue

__all__ = ("Net", "Counts")

_MAX_PAIRS = 128

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """What has passed a queue since it was started.

    :ivar frames: sent or received by the guest, and their `octets`.
    :ivar dropped: lost for want of room, or because the network would not take them.
    :ivar malformed: sent by the guest, but no frames, or with requests that it had not negotiated.
    :ivar unrecorded: missing in the pcap file.
    """

    frames: int
    octets: int
    dropped: int
    malformed: int
    unrecorded: int

    def __str__(self) -> str:
        lost = (("dropped", self.dropped), ("malformed", self.malformed), ("unrecorded", self.unrecorded))
        return ", ".join(
            [f"{self.frames} frames of {self.octets} bytes", *(f"{n} {what}" for what, n in lost if n)]
        )


class _Running(NamedTuple):
    # A started queue; cdata: what its network made, which begins with a struct vh_net; event_fd: of its path.
    queue: Queue
    cdata: Any
    batch: Batch | None
    event_fd: int
    enabled: bool

    @property
    def net(self) -> Any:
        return ffi.cast("struct vh_net *", self.cdata)


class Net(Device):
    """A network device.

    :param network: closed with the device.
    :param pcap: a file that gets every frame, which stays the caller's; None: none.
    :param mac: the address of the guest, for front-ends that ask the back-end for it; QEMU has its own.
    :param mtu: the largest packet, likewise, 68 to 65535 bytes.
    :raises DeviceError: the network has too many queues, or a number is out of range.
    """

    name = "net"
    device_id = 1
    feature_type = NetFeature
    serves_disabled = True

    def __init__(
        self, network: Network, *, pcap: Pcap | None = None, mac: bytes | None = None, mtu: int | None = None
    ) -> None:
        if not 1 <= network.pairs <= _MAX_PAIRS:
            raise DeviceError(f"{network.pairs} queue pairs: 1 to {_MAX_PAIRS} are possible")
        if mac is not None and (len(mac) != 6 or mac[0] & 1 or not any(mac)):
            raise DeviceError(f"{mac.hex(':')!r} is not the address of one station")
        if mtu is not None and not MTU_MIN <= mtu <= MTU_MAX:
            raise DeviceError(f"an MTU of {mtu} bytes: {MTU_MIN} to {MTU_MAX} are possible")
        self._network = network
        self._pcap = pcap
        self.num_queues = 2 * network.pairs
        self.offers_config = mac is not None or mtu is not None
        self._config = ConfigSpace(mac or bytes(6), 0, network.pairs, mtu or 0)
        self.features = int(NetFeature.MRG_RXBUF | NetFeature.GUEST_ANNOUNCE) | network.features
        self.features |= NetFeature.MAC if mac is not None else 0
        self.features |= NetFeature.MTU if mtu is not None else 0
        self.features |= NetFeature.MQ if network.pairs > 1 else 0
        self._running: dict[int, _Running] = {}
        self.reset()

    def config(self) -> bytes:
        return self._config.pack() if self.offers_config else b""

    def reset(self) -> None:
        self.negotiated(0)

    def negotiated(self, features: int) -> None:
        self._header = header_size(features)
        self._merge = bool(features & NetFeature.MRG_RXBUF)
        self._network.negotiated(features & self.features, self._header)

    def close(self) -> None:
        self._network.close()

    def path(self, queue: Queue) -> Any:
        """The data path of `queue`.

        :raises DeviceError: buffers are mapped for their use only (Xen), while this device holds them.
        """
        if queue.defers:
            raise DeviceError("net: this build of vhost serves no network devices; pip uninstall vhost-xen")
        pair, sends = divmod(queue.index, 2)
        cdata = self._network.sender(pair) if sends else self._network.receiver(pair)
        batch = None if sends else queue.new_batch()
        event_fd = ffi.cast("struct vh_net *", cdata).path.event_fd
        running = _Running(queue, cdata, batch, event_fd, False)
        net = running.net
        net.path.event_fd = -1
        net.header, net.merge, net.off = self._header, self._merge, True
        net.record = self._pcap.fd if self._pcap is not None and (sends or self._network.records) else -1
        if batch is not None:
            net.batch = batch.cdata
        self._running[queue.index] = running
        return ffi.addressof(net.path)

    def set_enabled(self, index: int, enabled: bool) -> None:
        running = self._running[index]
        if running.enabled == enabled:
            return
        if enabled and running.batch is not None:
            self._network.enabled(index // 2)
        running.net.off = not enabled
        # What comes while nobody takes it would keep the worker awake.
        running.net.path.event_fd = running.event_fd if enabled else -1
        self._running[index] = running._replace(enabled=enabled)
        if not enabled:
            lib.vh_net_release(running.net, running.queue.cdata)
        self._tell()

    def stop(self, index: int) -> None:
        if index not in self._running:
            return
        running = self._running[index]
        counts = self.counts(index)
        _log.info("queue %d: %s", index, counts)
        lib.vh_net_release(running.net, running.queue.cdata)
        del self._running[index]
        self._tell()

    def _tell(self) -> None:
        # A receiving queue counts if all before it are enabled too.
        pairs = 0
        while (queue := self._running.get(2 * pairs)) is not None and queue.enabled:
            pairs += 1
        self._network.active(pairs)

    def counts(self, index: int) -> Counts:
        """What has passed the queue `index`.

        :raises KeyError: it is not started.
        """
        net = self._running[index].net
        return Counts(net.frames, net.bytes, net.dropped, net.malformed, net.unrecorded)

    def process(self, chain: Chain) -> None:
        chain.read(self._header)
        self._network.process(chain.queue // 2, chain.read())
