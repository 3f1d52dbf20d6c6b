# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A network device (virtio 1.3, 5.1): queue 2i receives and queue 2i+1 sends for pair i.

The C core moves the frames; what they are moved to and from is a :class:`vhost.devices.network.Network`. The
control queue, behind the last pair, is served for front-ends that leave it to the back-end.
"""

import logging
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

from vhost._core import ffi, lib
from vhost.devices.device import Device
from vhost.devices.net_control import CONTROL_FEATURES, Control, is_station
from vhost.devices.network import Network
from vhost.devices.pcap import Pcap
from vhost.errors import DeviceError
from vhost.virtio.net import MTU_MAX, MTU_MIN, ConfigSpace, NetFeature, Status, header_size
from vhost.virtqueue import Batch, Chain, Queue

__all__ = ("Net", "Counts")

# With the control queue 255 of 256 possible queues.
_MAX_PAIRS = 127

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
        A driver may choose another one by the control queue.
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
        if mac is not None and not is_station(mac):
            raise DeviceError(f"{mac.hex(':')!r} is not the address of one station")
        if mtu is not None and not MTU_MIN <= mtu <= MTU_MAX:
            raise DeviceError(f"an MTU of {mtu} bytes: {MTU_MIN} to {MTU_MAX} are possible")
        self._network = network
        self._pcap = pcap
        self.num_queues = 2 * network.pairs + 1
        self.threads = 2 * network.pairs  # commands are rare: the thread of another queue serves them
        # Only for what is in it: QEMU, which has a space of its own, warns of one that it does not use.
        self.offers_config = mac is not None or mtu is not None or network.pairs > 1
        self._mtu = mtu or 0
        self.features = int(NetFeature.MRG_RXBUF) | CONTROL_FEATURES | network.features
        self.features |= NetFeature.STATUS if self.offers_config else 0
        self.features |= NetFeature.MAC if mac is not None else 0
        self.features |= NetFeature.MTU if mtu is not None else 0
        self.features |= NetFeature.MQ if network.pairs > 1 else 0
        self._running: dict[int, _Running] = {}
        # The thread of the control queue and the control plane both decide which queues are in use.
        self._lock = Lock()
        self._active = 0  # pairs, as the network knows
        self._mac = mac
        self._control = Control(network.pairs, mac, self._changed)
        self.negotiated(0)

    def config(self) -> bytes:
        if not self.offers_config:
            return b""
        mac = self._control.mac if self.features & NetFeature.MAC else None
        return ConfigSpace(mac or bytes(6), Status.LINK_UP, self._network.pairs, self._mtu).pack()

    def reset(self) -> None:
        self._control.reset()
        self.negotiated(0)

    def negotiated(self, features: int) -> None:
        self._header = header_size(features)
        self._merge = bool(features & NetFeature.MRG_RXBUF)
        self._control.negotiated(features)
        self._network.negotiated(features & self.features, self._header)

    def close(self) -> None:
        self._network.close()

    def path(self, queue: Queue) -> Any:
        """The data path of `queue`, None for the control queue.

        :raises DeviceError: buffers are mapped for their use only (Xen), while this device holds them; or
            there is no such queue with the features that are negotiated.
        """
        if queue.defers:
            raise DeviceError("net: this build of vhost serves no network devices; pip uninstall vhost-xen")
        control = self._control.ring()
        if queue.index == control:
            self._control.start(queue)
            return None
        if queue.index >= (self.num_queues - 1 if control is None else control):
            behind = "" if control is None else f", and the control queue is {control}"
            raise DeviceError(f"net: queue {queue.index} is there with other features only{behind}")
        pair, sends = divmod(queue.index, 2)
        cdata = self._network.sender(pair) if sends else self._network.receiver(pair)
        batch = None if sends else queue.new_batch()
        event_fd = ffi.cast("struct vh_net *", cdata).path.event_fd
        running = _Running(queue, cdata, batch, event_fd, False)
        net = running.net
        net.path.event_fd = -1
        net.header, net.merge, net.big, net.off = self._header, self._merge, queue.big_endian, True
        net.record = self._pcap.fd if self._pcap is not None and (sends or self._network.records) else -1
        if batch is not None:
            net.batch = batch.cdata
        with self._lock:
            self._running[queue.index] = running
        return ffi.addressof(net.path)

    def set_enabled(self, index: int, enabled: bool) -> None:
        if index == self._control.ring():
            self._control.use(enabled)
            return
        running = self._running[index]
        if running.enabled == enabled:
            return
        if enabled and running.batch is not None:
            self._network.enabled(index // 2)
        running.net.off = not enabled
        # What comes while nobody takes it would keep the worker awake.
        running.net.path.event_fd = running.event_fd if enabled else -1
        with self._lock:
            self._running[index] = running._replace(enabled=enabled)
        if not enabled:
            lib.vh_net_release(running.net, running.queue.cdata)
        self._tell()

    def stop(self, index: int) -> None:
        if index == self._control.ring():
            self._control.stop()
            return
        if index not in self._running:
            return
        running = self._running[index]
        counts = self.counts(index)
        _log.info("queue %d: %s", index, counts)
        lib.vh_net_release(running.net, running.queue.cdata)
        with self._lock:
            del self._running[index]
        self._tell()

    def _tell(self) -> None:
        # A receiving queue counts if all before it are enabled too, and its driver uses it.
        with self._lock:
            most = self._control.pairs if self._control.in_use else self._network.pairs
            chosen = self._control.filter if self._control.in_use else ffi.NULL
            pairs = 0
            while pairs < most and (queue := self._running.get(2 * pairs)) is not None and queue.enabled:
                pairs += 1
            for index, running in self._running.items():
                if index % 2 == 0:
                    lib.vh_net_filter_by(running.net, chosen)
            if pairs != self._active:
                self._active = pairs
                self._network.active(pairs)

    def _changed(self) -> None:
        # By the control queue, or because its driver has gone.
        mac = self._control.mac
        if self._control.in_use and mac is not None and mac != self._mac:
            self._network.moved(self._mac, mac)
        self._mac = mac
        self._tell()

    def counts(self, index: int) -> Counts:
        """What has passed the queue `index`.

        :raises KeyError: it is not started.
        """
        net = self._running[index].net
        return Counts(net.frames, net.bytes, net.dropped, net.malformed, net.unrecorded)

    def handle(self, queue: Queue) -> float | None:
        # The control queue: what is in it has no effect while it is disabled, so it stays there.
        return super().handle(queue) if self._control.in_use else None

    def process(self, chain: Chain) -> None:
        if chain.queue == self._control.ring():
            self._control.serve(chain)
            return
        chain.read(self._header)
        self._network.process(chain.queue // 2, chain.read())
