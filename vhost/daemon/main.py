# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What every daemon does once it knows its options: serve until a signal or the end of a connected socket.

What a user can cause ends with one line and a status; only faults of the program itself end in a traceback.
"""

import argparse
import gc
import logging
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from vhost.daemon.args import Parser, finish
from vhost.daemon.logging import configure
from vhost.daemon.systemd import notify
from vhost.errors import GuestMemoryError, VhostError

if TYPE_CHECKING:
    from vhost.backend import Stop
    from vhost.backend.session import MakeMemory
    from vhost.backend.worker import Polling
    from vhost.devices.device import Device

__all__ = ("run",)

_log = logging.getLogger(__name__)


def run(
    parser: Parser,
    capabilities: Mapping[str, str | Sequence[str]],
    make_devices: "Callable[[argparse.Namespace], list[Device]]",
) -> int:
    """Run a daemon from its command line to its end.

    :param capabilities: what ``--print-capabilities`` prints, by the keys of the vhost-user conventions.
    :param make_devices: makes ``socket_count`` devices.
    :returns: the exit status.
    """
    argv = sys.argv[1:]
    if "--print-capabilities" in argv:  # whatever else is there
        import json  # few ever ask

        sys.stdout.write(json.dumps(capabilities) + "\n")
        return 0
    args = finish(parser, argv)
    try:
        configure(parser.prog, args.verbose - args.quiet)
    except ValueError as error:
        parser.error(str(error))
    try:
        _serve(args, make_devices)
    except (VhostError, OSError, ImportError) as error:
        _log.error("%s", _one_line(error))
        return 1
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _serve(args: argparse.Namespace, make_devices: "Callable[[argparse.Namespace], list[Device]]") -> None:
    from vhost.backend import Stop  # after the options, so that help and mistakes cost no start-up
    from vhost.backend.listen import Source

    memory, polling = _memory(args), _polling(args)
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        stop.on_signals(signal.SIGTERM, signal.SIGINT)
        devices = make_devices(args)
        for device in devices:
            stack.callback(device.close)
        _check_features(args, devices)
        places: list[dict[str, object]] = []
        for index in range(args.socket_count):
            number = str(index) if args.socket_count > 1 else ""
            if args.connect is not None:
                places.append({"connect": args.connect + number})
                continue
            if args.socket_path is None:
                source = Source(fd=args.fd, listen_fds=args.fd is None)
            else:
                source = Source(args.socket_path + number)
            stack.callback(source.close)
            places.append({"sock": source.sock})
        from vhost.backend import (
            serve,
        )  # the protocol is loaded while the first front-end may already connect

        # What is loaded now stays: no collection needs to go through it again.
        gc.freeze()
        notify("READY=1")
        _serve_all(
            partial(
                serve, stop=stop, memory=memory, polling=polling, features=args.features, quirks=args.quirks
            ),
            devices,
            places,
            stop,
        )
        notify("STOPPING=1")


def _memory(args: argparse.Namespace) -> "MakeMemory":
    from vhost.mem import SELECTED, Memory

    if not args.grant_cache:
        return Memory
    if SELECTED != "xen":
        raise GuestMemoryError(
            f"--grant-cache={args.grant_cache}: this build of vhost maps guest memory with {SELECTED!r}, "
            f"and no grants; leave the option out, or pip install 'vhost[xen]'"
        )
    from vhost.mem.xen import XenMemory

    return partial(XenMemory, grant_cache=args.grant_cache)


def _check_features(args: argparse.Namespace, devices: "list[Device]") -> None:
    # What a device cannot do is said before anybody is told that it is there.
    if args.features:
        from vhost.backend.offer import Offer  # which takes the protocol

        for device in devices:
            Offer.of(device, args.features)


def _polling(args: argparse.Namespace) -> "Polling":
    from vhost.backend.worker import Polling

    return Polling(args.poll_us, args.poll_always, args.workers, args.cpus, args.numa_node)


def _serve_all(
    serve: Callable[..., None],
    devices: "list[Device]",
    places: list[dict[str, object]],
    stop: "Stop",
) -> None:
    """Serve each device at its place; the first that fails ends the others."""
    failures: list[Exception] = []

    def one(device: "Device", place: dict[str, object]) -> None:
        try:
            serve(device, **place)
        except Exception as error:
            failures.append(error)
            stop.set()

    others = [threading.Thread(target=one, args=pair) for pair in zip(devices[1:], places[1:], strict=True)]
    for thread in others:
        thread.start()
    one(devices[0], places[0])
    for thread in others:
        thread.join()
    if failures:
        raise failures[0]
