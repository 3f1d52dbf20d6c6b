# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``vhost bench``: backends under load, in alternating rounds."""

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final, NoReturn

from vhost import mem
from vhost.bench import (
    DEFAULT,
    DEVICES,
    Access,
    Bench,
    Condition,
    ControlBench,
    Peer,
    Workload,
    chart,
    control_plain,
    costs,
    figures,
    machine,
    marks,
    plain,
    read_peers,
    report,
)
from vhost.cli.progress import Turns
from vhost.protocol import Quirks

__all__ = ("run",)

_ROUNDS, _FEW_ROUNDS = 9, 3
_MOST_TIME: Final = 60.0


def run(args: argparse.Namespace) -> int:
    """Measure; returns the exit status."""
    control = args.device == "control"
    try:
        benches = [] if control else _plan(args)
        messages = _plan_control(args) if control else None
    except ValueError as error:
        print(f"vhost bench: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    try:
        return _measure(benches, args) if messages is None else _measure_control(messages, args)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is left behind", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"vhost bench: {error}", file=sys.stderr)
        return 1


def _exit(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)  # by way of all that cleans up


def _plan(args: argparse.Namespace) -> list[Bench]:
    """What to measure.

    :raises ValueError: the command line asks for what cannot be.
    """
    if args.device is not None and args.device not in DEVICES:
        raise ValueError(f"{args.device!r} is no device; there are {', '.join(DEVICES)}, and control")
    _place(args)
    depths = _depths(args.depth or ("1,32,128" if args.peers else "1,128"))
    modes = _modes(args.mode or ("event,poll" if args.peers else "event"))
    conditions = [Condition(depth, poll) for depth in depths for poll in modes]
    rounds = (_ROUNDS if args.peers else _FEW_ROUNDS) if args.rounds is None else args.rounds
    _check(rounds, args.time, args.server_cpu, args.driver_cpu)
    benches = []
    for device in (args.device,) if args.device else ("blk", "rng"):
        usual = Workload.of(device)
        workload = Workload(
            device,
            Access(args.access) if args.access else usual.access,
            usual.size if args.size is None else args.size,
            queue_size=args.queue_size,
            regions=args.regions,
            indirect=args.indirect,
            event_idx=not args.no_event_idx,
            packed=args.packed,
            in_order=args.in_order,
            inflight=args.inflight,
            dirty_log=args.dirty_log,
            python=args.python,
            quirks=Quirks.choose(args.quirks),
        )
        for condition in conditions:
            workload.entries(condition.depth)
        benches.append(
            Bench(
                workload,
                _peers(args.peers, device, args.peer_file),
                conditions,
                rounds,
                args.time,
                server_cpu=args.server_cpu,
                driver_cpu=args.driver_cpu,
            )
        )
    return benches


def _plan_control(args: argparse.Namespace) -> ControlBench:
    """What to measure of the control plane.

    :raises ValueError: the command line asks for what cannot be.
    """
    if args.depth or args.mode or args.svg:
        raise ValueError("control: messages have no --depth and no --mode, and --svg draws none")
    if args.quirks:
        raise ValueError("control: these messages are the same with every --quirk")
    _place(args)
    _check(args.rounds, args.time, args.server_cpu, args.driver_cpu)
    rounds = (_ROUNDS if args.peers else _FEW_ROUNDS) if args.rounds is None else args.rounds
    return ControlBench(
        _peers(args.peers, "control", args.peer_file),
        rounds,
        args.time,
        server_cpu=args.server_cpu,
        driver_cpu=args.driver_cpu,
    )


def _check(rounds: int | None, seconds: float, *cpus: int | None) -> None:
    if (rounds is not None and rounds < 1) or not 0 < seconds <= _MOST_TIME:
        raise ValueError(f"{rounds} rounds of {seconds} s: 1 or more, of at most {_MOST_TIME:g} s")
    for cpu in cpus:
        if cpu is not None and cpu not in os.sched_getaffinity(0):
            here = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            raise ValueError(f"there is no processor {cpu} for us; there are {here}")


def _place(args: argparse.Namespace) -> None:
    # What --cores stands for, in terms of the options that say it one by one.
    if args.cores is None:
        return
    if args.server_cpu is not None or args.driver_cpu is not None:
        raise ValueError("--cores says where both run; leave out --server-cpu and --driver-cpu")
    here = sorted(os.sched_getaffinity(0))
    if len(here) < args.cores:
        raise ValueError(f"--cores 2, but there is only processor {here[0]} for us")
    args.server_cpu, args.driver_cpu = here[-args.cores], here[-1]
    args.mode = args.mode or ("event" if args.cores == 1 else "poll")


def _depths(text: str) -> list[int]:
    depths = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if not all(depths):
        raise ValueError(f"--depth {text}: numbers from 1 on are wanted, with commas between")
    return list(dict.fromkeys(depths))


def _modes(text: str) -> list[bool]:
    modes = text.split(",")
    if wrong := [mode for mode in modes if mode not in ("event", "poll")]:
        raise ValueError(f"--mode {text}: {wrong[0]!r} is neither event nor poll")
    return list(dict.fromkeys(mode == "poll" for mode in modes))


def _peers(texts: list[str], device: str, file: str | None) -> list[Peer]:
    if not texts:
        if device not in DEFAULT:
            raise ValueError(f"{device}: name what to measure, as NAME=COMMAND or NAME=@PATH")
        if mem.SELECTED != "unix":
            raise ValueError(
                f"name what to measure: the devices of this installation (memory: {mem.SELECTED}) serve Xen "
                "guests only, and the load comes from a process"
            )
        texts = [DEFAULT[device]]
    try:
        more = read_peers(file, device) if file else {}
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    peers = [Peer.parse(text, device, more) for text in texts]
    names = [peer.name for peer in peers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two peers are named {twice}")
    return peers


def _measure_control(bench: ControlBench, args: argparse.Namespace) -> int:
    turns = Turns()
    bench.tell = turns.show
    try:
        bench.run()
    finally:
        turns.clear()
    print(f"{bench}; {bench.rounds} rounds of {bench.seconds:g} s\n")
    found = costs(bench.results)
    print(*control_plain(found), sep="\n")
    for (peer, operation), why in bench.lacking.items():
        print(f"\n{peer}, {operation}: not measured, {why}")
    sys.stdout.flush()
    for peer, why in bench.failed.items():
        print(f"{peer}: {why}", file=sys.stderr)
    if args.json:
        data = {"machine": machine(), "costs": [asdict(cost) for cost in found], "failed": bench.failed}
        Path(args.json).write_text(json.dumps(data, indent=1) + "\n")
    return 1 if bench.failed else 0


def _measure(benches: list[Bench], args: argparse.Namespace) -> int:
    here = machine()
    print(
        f"{here['processor']}, {here['processors']} processors, Linux {here['kernel']}, "
        f"Python {here['python']}"
    )
    turns, sound = Turns(), True
    for bench in benches:
        bench.tell = turns.show
        try:
            bench.run()
        finally:
            turns.clear()
        sound &= _show(bench)
    if args.json:
        Path(args.json).write_text(json.dumps(report(benches), indent=1) + "\n")
    if args.svg and (drawn := [bench for bench in benches if bench.results]):
        _draw(drawn, Path(args.svg))
    return 0 if sound else 1


def _show(bench: Bench) -> bool:
    where = ", ".join(
        f"{who} on processor {cpu}"
        for who, cpu in (("server", bench.server_cpu), ("driver", bench.driver_cpu))
        if cpu is not None
    )
    print(f"\n{bench.workload}; {bench.rounds} rounds of {bench.seconds:g} s{where and '; ' + where}\n")
    found = figures(bench.results)
    print(*plain(found), sep="\n")
    sys.stdout.flush()
    doubts = marks(found) + [f"{name}: {why}" for name, why in bench.failed.items()]
    if doubts:
        print("", *doubts, sep="\n", file=sys.stderr)
    return not doubts


def _draw(benches: list[Bench], path: Path) -> None:
    for i, bench in enumerate(benches):
        to = path if i == 0 else path.with_stem(f"{path.stem}-{bench.workload.device}")
        to.write_text(chart(figures(bench.results), str(bench.workload)))
