# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Measures the rows of docs/benchmarks.toml and writes them into docs/benchmarks.md, with pictures.

    python docs/make_benchmarks.py --peers peers.toml

``peers.toml`` names back-ends that are not part of this project, each a command with @SOCKET@, as
"vhost bench" takes them (a name may have :spin or :verify behind it):

    [blk]
    floor-null = "/path/to/floor @SOCKET@ null"
    "floor-null-spin:spin" = "/path/to/floor @SOCKET@ null spin"
"""

import argparse
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

from vhost.bench import (
    COMMANDS,
    Access,
    Bench,
    Condition,
    ControlBench,
    Peer,
    Workload,
    chart,
    control_markdown,
    costs,
    figures,
    machine,
    markdown,
    marks,
    read_peers,
    report,
)

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "benchmarks.md"
PICTURES: Final = ROOT / "docs" / "benchmarks"
BEGIN: Final = "<!-- Made by docs/make_benchmarks.py: from here -->\n"
END: Final = "<!-- to here -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--peers", metavar="FILE", help="back-ends of others, see above")
    parser.add_argument("--rounds", metavar="N", type=int, default=9)
    parser.add_argument("--time", metavar="S", type=float, default=0.4)
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="rows to measure; print, write nothing"
    )
    parser.add_argument("--json", metavar="FILE", help="write every round to FILE")
    args = parser.parse_args()
    os.chdir(ROOT)  # commands of rows have paths from here
    plan = tomllib.loads((ROOT / "docs" / "benchmarks.toml").read_text())
    rows = [row for row in plan["row"] if not args.only or row["name"] in args.only]
    benches, parts = [], [introduction(args.rounds, args.time)]
    for row in rows:
        device = row["device"]
        known = {
            **peers(device, plan["peers"].get(device, {})),
            **(read_peers(args.peers, device) if args.peers else {}),
        }
        bench = prepare(row, known, args.rounds, args.time)
        print(f"{row['title']}: {', '.join(peer.name for peer in bench.peers)}", file=sys.stderr, flush=True)
        bench.run()
        benches.append(bench)
        parts.append(section(row, bench))
        if args.only:
            print(parts[-1])
    if not args.only or "control" in args.only:
        parts.append(control(args))
        if args.only:
            print(parts[-1])
    if args.json:
        Path(args.json).write_text(json.dumps(report(benches), indent=1) + "\n")
    if not args.only:
        write("\n".join(parts))
        PICTURES.mkdir(exist_ok=True)
        for row, bench in zip(rows, benches, strict=True):
            if bench.results:
                (PICTURES / f"{row['name']}.svg").write_text(chart(figures(bench.results), row["title"]))
    return 1 if any(bench.failed or marks(figures(bench.results)) for bench in benches) else 0


def peers(device: str, commands: dict[str, str]) -> dict[str, Peer]:
    found = [Peer.parse(f"{name}={command}", device) for name, command in commands.items()]
    return {peer.name: peer for peer in found}


def prepare(row: dict[str, Any], known: dict[str, Peer], rounds: int, seconds: float) -> Bench:
    usual = Workload.of(row["device"])
    server, driver = row["cpus"]
    return Bench(
        Workload(
            row["device"],
            Access(row.get("access", usual.access)),
            row.get("size", usual.size),
            regions=row.get("regions", 1),
            indirect=row.get("indirect", False),
        ),
        [
            Peer.parse(name, row["device"], known)
            for name in row["peers"]
            if name.partition(":")[0] in {**COMMANDS[row["device"]], **known}
        ],
        [Condition(depth, mode == "poll") for mode in row["mode"] for depth in row["depth"]],
        rounds,
        seconds,
        server_cpu=server,
        driver_cpu=driver,
    )


def control(args: argparse.Namespace) -> str:
    """What messages cost, of our own back-end, qemu-storage-daemon, and the first that are named for blk."""
    theirs = read_peers(args.peers, "blk") if args.peers else {}
    peers = [peer for peer in theirs.values() if not peer.spin][:1]
    peers += [Peer.parse(name, "control") for name in ("vhost-rng", "qemu-storage-daemon-null")]
    bench = ControlBench(peers, args.rounds, args.time / 2, server_cpu=0, driver_cpu=0)
    bench.run()
    lines = [
        "### Messages of the control plane, on one processor",
        "",
        "*handshake*: from connecting to an enabled ring, with 8 memory regions. *ADD_MEM_REG*: where there",
        "are 508 regions, until it is acknowledged. Messages are made before and sent from C. *Server us*",
        "has what goes with each: closing a connection, removing the region.",
        "",
        *control_markdown(costs(bench.results)),
    ]
    lines += [f"\n{peer}, {what}: not measured, {why}." for (peer, what), why in bench.lacking.items()]
    lines += [f"\n{name} failed: {why}." for name, why in bench.failed.items()]
    return "\n".join(lines) + "\n"


def introduction(rounds: int, seconds: float) -> str:
    here = machine()
    kernel = here["kernel"].partition("-")[0]
    return f"""## Machine and method

{here["processors"]} processors ({here["processor"]}), Linux {kernel}, Python {here["python"]}.
Other work may have run beside, so what counts are ratios.

    python docs/make_benchmarks.py --peers peers.toml

measures all of this with `vhost bench`: {rounds} rounds of {seconds:g} s after 0.1 s to warm up, in which the
back-ends take turns (A B C, C B A, ...), each on a connection of its own. The driver is in C; it checks id,
length and status of every request, and compares the data of one in 64 (*compared*): sectors begin with their
numbers, and entropy is not the zeros that were there. A disk that keeps nothing has no data.
*Event*: it sleeps until it is called, *poll*: it spins. Requests/s and times are medians, with quartiles;
*ratio* is to the first, taken within each round. *Server CPU* is the back-end's time per request, from its
CPU clock; *calls* are interrupts per request. A figure with `(!)` had wrong requests or lost interrupts.
"""


def section(row: dict[str, Any], bench: Bench) -> str:
    lines = [f"### {row['title']}", ""]
    if "text" in row:
        lines += [row["text"], ""]
    server, driver = row["cpus"]
    where = "server and driver on one processor" if server == driver else "a processor for each side"
    lines += [f"{bench.workload}; {where}.", ""]
    lines += [f"    {peer.name}: {shown(peer)}" for peer in bench.peers if peer.command]
    measured = figures(bench.results)
    if measured:
        lines += ["", *markdown(measured), "", f"![{row['title']}](benchmarks/{row['name']}.svg)"]
    lines += [f"\n{mark}." for mark in marks(measured)]
    lines += [f"\n{name} failed: {why}." for name, why in bench.failed.items()]
    there = {peer.name for peer in bench.peers}
    if missing := [name for name in row["peers"] if name.replace(":", "-") not in there]:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def shown(peer: Peer) -> str:
    """A command without what belongs to this machine: paths of programs, and of this checkout."""
    words = [word for word in peer.command if word != "env" and not word.startswith("PYTHONPATH=")]
    if "-m" in words:
        words = [
            words[words.index("-m") + 1].replace("vhost.daemon.", "vhost-"),
            *words[words.index("-m") + 2 :],
        ]
    own = f" ({', '.join(peer.own)})" if peer.own else ""
    return " ".join([Path(words[0]).name, *words[1:]]) + own


def write(text: str) -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        sys.exit(f"{PAGE} lacks the lines between which the figures go: {BEGIN.strip()} and {END.strip()}")
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
