# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What IN_ORDER costs a disk whose requests overtake each other: latencies of reads beside others.

``python -m tests.bench.order IMAGE`` serves IMAGE, a file on a disk, past the page cache of the host or, with
``--cached``, through it. Of four requests in flight one writes 1 MiB or, in turn, flushes; the others read
4 KiB at random. Three drivers have their turns: one takes IN_ORDER if it is offered, one never does, and the
user of one has asked for it.
"""

import argparse
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import vhost
from vhost.frontend import FrontendQueue
from vhost.protocol import VirtioFeature
from vhost.virtio.blk import HEADER, BlkRequest

READS, PAGE, LARGE = 3, 4096, 1 << 20
TIMEOUT = 30.0


@dataclass
class Turns:
    """A driver, what it asks of the back-end, and the median and the 99th percentile of each of its turns."""

    name: str
    features: str
    takes: bool
    medians: list[float] = field(default_factory=list)
    tails: list[float] = field(default_factory=list)


def header(kind: int, offset: int = 0) -> bytes:
    return HEADER.pack(kind, 0, offset // 512)


def load(queue: FrontendQueue, size: int, seconds: float) -> list[float]:
    """Latencies of reads, in microseconds."""
    dice, flying, found = random.Random(1), dict[int, float](), list[float]()
    slow = -1
    flush = True
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        while len(flying) < READS:
            at = dice.randrange(size // PAGE) * PAGE
            flying[queue.submit(header(BlkRequest.IN, at), [PAGE, 1])] = time.perf_counter()
        if slow < 0:
            flush = not flush
            data = header(BlkRequest.FLUSH) if flush else header(BlkRequest.OUT) + bytes(LARGE)
            slow = queue.submit(data, [1])
        queue.publish()
        for done in [queue.wait(), *queue.completed()]:
            assert done.buffer[-1] == 0, "a request has failed"
            if done.token == slow:
                slow = -1
            else:
                found.append((time.perf_counter() - flying.pop(done.token)) * 1e6)
    return found


def turn(image: Path, folder: Path, driver: Turns, seconds: float, *, direct: bool) -> None:
    path = folder / "socket"
    options = [f"--socket-path={path}", f"--blk-file={image}", "--quiet", *["--direct"] * direct]
    options += [f"--features={driver.features}"] if driver.features else []
    with subprocess.Popen([sys.executable, "-P", "-m", "vhost.daemon.blk", *options]) as process:
        try:
            deadline = time.monotonic() + TIMEOUT
            with socket.socket(socket.AF_UNIX) as probe:
                while probe.connect_ex(str(path)):
                    assert time.monotonic() < deadline, "vhost-blk does not start"
                    time.sleep(0.01)
            with vhost.connect(path, queues=0) as asked:
                offered = bool(asked.offered_features & VirtioFeature.IN_ORDER)
            with vhost.connect(path, in_order=offered and driver.takes, timeout=TIMEOUT) as device:
                (sectors,) = struct.unpack("<Q", device.config(0, 8))
                latencies = load(device.queue(0), sectors * 512, seconds)
        finally:
            process.terminate()
    cuts = statistics.quantiles(latencies, n=100)
    driver.medians.append(cuts[49])
    driver.tails.append(cuts[98])


def main() -> None:
    parser = argparse.ArgumentParser(description="Latencies of reads beside large writes, by IN_ORDER.")
    parser.add_argument("image", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--time", type=float, default=2.0, help="seconds of a turn")
    parser.add_argument("--cached", action="store_true", help="through the page cache")
    args = parser.parse_args()
    drivers = [
        Turns("takes IN_ORDER if it is offered", "", True),
        Turns("never takes IN_ORDER", "", False),
        Turns("takes IN_ORDER, `--features +in-order`", "+in-order", True),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for driver in drivers[:: -1 if number % 2 else 1]:
                turn(args.image, Path(folder), driver, args.time, direct=not args.cached)
    sys.stdout.write("| driver | p50 of reads, us | p99 of reads, us |\n|---|---|---|\n")
    for driver in drivers:
        cells = [f"{statistics.median(figures):,.0f}" for figures in (driver.medians, driver.tails)]
        sys.stdout.write(f"| {driver.name} | {cells[0]} | {cells[1]} |\n")


if __name__ == "__main__":
    main()
