# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``vhost-net``: a network card, on a switch between guests, a host in this process, or a TAP interface."""

import argparse
import sys
from typing import TYPE_CHECKING

from vhost.daemon.args import make_parser, number
from vhost.daemon.main import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Interface

    from vhost.backend.features import Own
    from vhost.devices.device import Device
    from vhost.devices.network import Network

__all__ = ("main",)


def main() -> int:
    """The program; returns its exit status."""
    parser = make_parser(
        "vhost-net",
        "Serve virtio network devices: the guests at the sockets are on one virtual Ethernet switch.",
        path="/tmp/net.sock",
        device="virtio-net-pci,netdev=n0",
        netdev="vhost-user,id=n0",
        many=True,
        own=_features,
    )
    options = parser.add_argument_group("device options")
    where = options.add_mutually_exclusive_group()
    where.add_argument(
        "--tap",
        metavar="NAME",
        help="connect the guest to this TAP interface, which is made if it is not there (needs "
        "CAP_NET_ADMIN) and gone with this program if it was made; several guests: NAME0, NAME1, ...",
    )
    where.add_argument(
        "--respond",
        metavar="SUBNET",
        type=_subnet,
        help="be a host on the switch, at the first address of SUBNET: answer ARP and ping, and give "
        "addresses by DHCP: 10.0.2.0/24",
    )
    options.add_argument("--pcap", metavar="FILE", help="write every frame to FILE, which is made anew")
    options.add_argument(
        "--num-queues",
        metavar="N",
        type=number(1, 127),
        default=1,
        help="pairs of queues of each device; and queues=N for QEMU's -netdev, mq=on for its -device "
        "(default: %(default)s)",
    )
    options.add_argument(
        "--mac",
        metavar="ADDR",
        type=_mac,
        help="address of the guest, for front-ends that ask for it (QEMU does not); socket I has ADDR+I",
    )
    options.add_argument(
        "--mtu", metavar="BYTES", type=number(68, 65535), help="largest packet, for such front-ends"
    )
    where.add_argument("--discard", action="store_true", help="let what guests send vanish, for benchmarks")
    where.add_argument(
        "--generate",
        metavar="BYTES",
        type=number(18, 65550),
        help="fill the receive queues with numbered frames of this size as fast as they take them, for "
        "benchmarks; what guests send vanishes",
    )
    return run(parser, {"type": "net", "features": []}, _devices)


def _features() -> "Own":
    from vhost.virtio.net import NetFeature

    return NetFeature


def _subnet(text: str) -> "IPv4Interface":
    # The first host of a network, with the network's prefix.
    from ipaddress import IPv4Interface, IPv4Network

    try:
        network = IPv4Network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if network.prefixlen > 30:
        raise argparse.ArgumentTypeError(f"{text} has no room for a guest: a prefix of 30 bits is the most")
    return IPv4Interface((network.network_address + 1, network.prefixlen))


def _mac(text: str) -> bytes:
    parts = text.split(":")
    try:
        if len(parts) != 6 or any(len(part) != 2 for part in parts):
            raise ValueError
        mac = bytes(int(part, 16) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: six bytes are needed, as in 52:54:00:12:34:56") from None
    if mac[0] & 1 or not any(mac):
        raise argparse.ArgumentTypeError(f"{text} is not the address of one station")
    return mac


def _devices(args: argparse.Namespace) -> "list[Device]":
    from vhost.devices.net import Net
    from vhost.devices.pcap import Pcap

    networks = _networks(args)
    try:
        pcap = None if args.pcap is None else Pcap(args.pcap)
    except BaseException:
        for network in networks:
            network.close()
        raise
    return [
        Net(network, pcap=pcap, mac=_address(args.mac, index), mtu=args.mtu)
        for index, network in enumerate(networks)
    ]


def _address(first: bytes | None, index: int) -> bytes | None:
    return (
        None if first is None else first[:3] + ((int.from_bytes(first[3:]) + index) % (1 << 24)).to_bytes(3)
    )


def _networks(args: argparse.Namespace) -> "Sequence[Network]":
    count, pairs = args.socket_count, args.num_queues
    if args.discard or args.generate is not None:
        from vhost.devices.network import Discard

        return [Discard(pairs=pairs, generate=args.generate) for _ in range(count)]
    if args.tap is not None:
        return _taps([args.tap] if count == 1 else [f"{args.tap}{index}" for index in range(count)], pairs)
    from vhost.devices.switch import Switch

    station = None
    if args.respond is not None:
        from vhost.devices.responder import Responder

        station = Responder(args.respond)
    return Switch(count, pairs=pairs, station=station).ports


def _taps(names: "Sequence[str]", pairs: int) -> "Sequence[Network]":
    from vhost.devices.tap import Tap

    taps: list[Tap] = []
    try:
        for name in names:
            taps.append(Tap(name, pairs=pairs))
    except BaseException:
        for tap in taps:
            tap.close()
        raise
    return taps


if __name__ == "__main__":
    sys.exit(main())
