# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The control queue of a network device (virtio 1.3, 5.1.6.5): its commands, and what was set by them.

Front-ends like QEMU keep this queue to themselves and never start it. Then nothing of this takes effect: the
guest receives everything, on all receiving queues that are enabled.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from vhost._core import ffi, lib
from vhost.virtio.net import (
    Ack,
    AnnounceCommand,
    ControlClass,
    MacCommand,
    MqCommand,
    NetFeature,
    RxCommand,
    VlanCommand,
    mac_tables,
)
from vhost.virtqueue import Chain, Queue

__all__ = ("CONTROL_FEATURES", "Control", "is_station")

_log = logging.getLogger(__name__)

#: Feature bits of the control queue; MQ is another, of devices with more than one pair of queues.
CONTROL_FEATURES: Final = int(
    NetFeature.CTRL_VQ
    | NetFeature.CTRL_RX
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_MAC_ADDR
    | NetFeature.GUEST_ANNOUNCE
)

# Bytes of a command, more than any driver has addresses for.
_LONGEST = 1 << 16
_VLANS = 1 << 12
# Mode and feature of each command of class RX.
_MODES: Final = {
    RxCommand.PROMISC: (lib.VH_NET_PROMISC, NetFeature.CTRL_RX),
    RxCommand.ALLMULTI: (lib.VH_NET_ALLMULTI, NetFeature.CTRL_RX),
    RxCommand.ALLUNI: (lib.VH_NET_ALLUNI, NetFeature.CTRL_RX_EXTRA),
    RxCommand.NOMULTI: (lib.VH_NET_NOMULTI, NetFeature.CTRL_RX_EXTRA),
    RxCommand.NOUNI: (lib.VH_NET_NOUNI, NetFeature.CTRL_RX_EXTRA),
    RxCommand.NOBCAST: (lib.VH_NET_NOBCAST, NetFeature.CTRL_RX_EXTRA),
}


class Control:
    """What the driver of a network device has set by its control queue.

    :param pairs: pairs of queues that the device has.
    :param mac: address of the guest, None: it is the driver's choice.
    :param changed: called when something is another than before.
    """

    def __init__(self, pairs: int, mac: bytes | None, changed: Callable[[], None]) -> None:
        #: Whether a driver uses the queue.
        self.in_use: bool
        #: Pairs of queues that it uses.
        self.pairs: int
        #: The guest's address, None: unknown.
        self.mac: bytes | None
        self._max_pairs = pairs
        self._first_mac = mac
        self._changed = changed
        self._features = 0
        self._queue: Queue | None = None
        self._base: int | None = None  # where the queue was when it stopped
        #: ``struct vh_net_filter *`` for the receiving queues.
        self.filter: Any = ffi.new("struct vh_net_filter *")
        self._reset()

    def ring(self) -> int | None:
        """The index of the control queue (5.1.2), None: with the features negotiated there is none."""
        if not self._features & NetFeature.CTRL_VQ:
            return None
        return 2 * self._max_pairs if self._features & NetFeature.MQ else 2

    def negotiated(self, features: int) -> None:
        """The driver has acknowledged `features`; with others than before it is another one."""
        if features != self._features:
            self._features = features
            self.reset()

    def start(self, queue: Queue) -> None:
        """The control queue starts; where it does not go on from where it was, another driver has it."""
        self._queue = queue
        if queue.base != self._base:
            self.reset()

    def stop(self) -> None:
        """It stops, for a change of guest memory say; what was set stays."""
        if self._queue is not None:
            self._base, self._queue = self._queue.base, None

    def use(self, in_use: bool) -> None:
        """The control queue is enabled or disabled; a front-end that disables it has lost its driver."""
        if in_use == self.in_use:
            return
        if in_use:
            self.in_use = True
            self._changed()
        else:
            self.reset()

    def reset(self) -> None:
        """Forget what a driver has set."""
        self._reset()
        self._changed()

    def _reset(self) -> None:
        self.in_use, self.pairs, self.mac = False, 1, self._first_mac
        self._warned = False  # a guest does not fill the log
        # Drivers that know nothing of filters expect none; the others say what they want.
        self._modes = int(lib.VH_NET_PROMISC)
        self._stations = self._groups = b""
        lib.vh_net_filter_no_vlans(self.filter)
        self._set_filter()

    # ---- commands ----

    def serve(self, chain: Chain) -> None:
        """Do what a command says, and answer it."""
        data = chain.read(_LONGEST + 1)
        try:
            if len(data) > _LONGEST:
                raise ValueError(f"more than {_LONGEST} bytes")
            self._obey(data[:2], data[2:], chain.big_endian)
            answer = Ack.OK
        except ValueError as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            _log.log(level, "net: control command %s refused: %s", data[:2].hex() or "of no bytes", error)
            self._warned = True
            answer = Ack.ERR
        chain.write(bytes((answer,)))

    def _obey(self, command: bytes, data: bytes, big_endian: bool) -> None:
        if len(command) < 2:
            raise ValueError("it has no class and command")
        match ControlClass(command[0]):
            case ControlClass.RX:
                self._receive(RxCommand(command[1]), _flag(data))
            case ControlClass.MAC:
                if MacCommand(command[1]) is MacCommand.TABLE_SET:
                    self._need(NetFeature.CTRL_RX)
                    self._stations, self._groups = mac_tables(data, big_endian=big_endian)
                    self._set_filter()
                else:
                    self._move(data)
            case ControlClass.VLAN:
                vlan, command_ = _word(data, big_endian), VlanCommand(command[1])
                self._need(NetFeature.CTRL_VLAN)
                if vlan >= _VLANS:
                    raise ValueError(f"there is no VLAN {vlan}")
                lib.vh_net_filter_vlan(self.filter, vlan, command_ is VlanCommand.ADD)
            case ControlClass.ANNOUNCE:
                # The device itself never asks for an announcement: the status bit that this clears is clear.
                AnnounceCommand(command[1])
                self._need(NetFeature.GUEST_ANNOUNCE)
                _nothing(data)
            case ControlClass.MQ:
                MqCommand(command[1])
                self._use_pairs(_word(data, big_endian))

    def _receive(self, command: RxCommand, on: bool) -> None:
        mode, feature = _MODES[command]
        self._need(feature)
        self._modes = self._modes | mode if on else self._modes & ~mode
        self._set_filter()

    def _move(self, mac: bytes) -> None:
        self._need(NetFeature.CTRL_MAC_ADDR)
        if not is_station(mac):
            raise ValueError(f"{mac.hex(':')!r} is not the address of one station")
        if mac != self.mac:
            self.mac = mac
            self._set_filter()
            self._changed()

    def _use_pairs(self, pairs: int) -> None:
        self._need(NetFeature.MQ)
        if not 1 <= pairs <= self._max_pairs:
            raise ValueError(f"{pairs} pairs of queues: 1 to {self._max_pairs} are there")
        self.pairs = pairs
        self._changed()

    def _need(self, feature: NetFeature) -> None:
        if not self._features & feature:
            raise ValueError(f"{feature.name} is not negotiated")

    def _set_filter(self) -> None:
        modes, most = self._modes, 6 * (int(lib.VH_NET_STATIONS) - 1)
        if self._features & NetFeature.CTRL_VLAN:
            modes |= lib.VH_NET_VLANS
        stations, groups = self._stations, self._groups
        # A device that cannot hold all addresses receives more than was asked for (5.1.6.5.2).
        if len(stations) > most or self.mac is None:
            stations, modes = b"", modes | lib.VH_NET_ALLUNI
        if len(stations) + len(groups) > most:
            groups, modes = b"", modes | lib.VH_NET_ALLMULTI
        every = stations + groups + (self.mac or b"")
        macs = [int.from_bytes(every[at : at + 6]) for at in range(0, len(every), 6)]
        lib.vh_net_filter_set(self.filter, modes, ffi.new("uint64_t[]", macs), len(macs))


def is_station(mac: bytes) -> bool:
    """Whether it is the address of one station."""
    return len(mac) == 6 and not mac[0] & 1 and any(mac)


def _flag(data: bytes) -> bool:
    if data not in (b"\0", b"\1"):
        raise ValueError(f"{data[:8].hex() or 'nothing'} is neither on (1) nor off (0)")
    return data == b"\1"


def _word(data: bytes, big_endian: bool) -> int:
    if len(data) != 2:
        raise ValueError(f"{len(data)} bytes in place of a number of 2")
    return int.from_bytes(data, "big" if big_endian else "little")


def _nothing(data: bytes) -> None:
    if data:
        raise ValueError(f"{len(data)} bytes behind a command that takes none")
