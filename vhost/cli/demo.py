# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``vhost demo``: two devices in processes of their own, driven and checked from here."""

import argparse
import enum
import errno
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from vhost import mem
from vhost.cli.process import Daemon, DaemonError
from vhost.cli.progress import Progress, rate
from vhost.cli.tap import Tap
from vhost.devices.entropy import SeededSource
from vhost.errors import VhostError
from vhost.frontend import Blk, Frontend, Rng, connect
from vhost.virtio.blk import BlkFeature

__all__ = ("run",)

_MIB = 1 << 20
_STEP = 8 * _MIB  # bytes in one call of read or write
_READS, _READ_SIZE, _READ_TIME = 2000, 4096, 2.0
_RANDOM_PIECE, _RANDOM_TIME = 65536, 0.2
_SEED = 2024
_SERIAL = "vhost-demo"


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; returns the exit status."""
    if mem.SELECTED != "unix":
        print(
            "The demo cannot run here: it shares memory of its own process with the devices, and this\n"
            f"installation (memory: {mem.SELECTED}) maps memory of Xen guests only. Use an installation\n"
            "of vhost without the xen extra.",
            file=sys.stderr,
        )
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    return _Demo(args.size * _MIB).run()


def _exit(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)  # by way of all that cleans up


class _Demo:
    def __init__(self, size: int) -> None:
        self._size = size
        self._step = ""
        self._daemon: Daemon | None = None
        self._messages = 0
        width = max(min(shutil.get_terminal_size().columns, 110), 60)
        self._wrap = textwrap.TextWrapper(width, initial_indent="    ", subsequent_indent=" " * 8)

    def run(self) -> int:
        start = time.monotonic()
        try:
            self._begin("make a temporary directory")
            with tempfile.TemporaryDirectory(prefix="vhost-demo-") as folder:
                try:
                    self._random_numbers(Path(folder))
                    self._disk(Path(folder))
                except (VhostError, OSError) as error:
                    return self._failed(error)
        except KeyboardInterrupt:
            print("\ninterrupted; nothing is left behind", file=sys.stderr)
            return 130
        except OSError as error:
            return self._failed(error)
        print(
            f"\nPASSED: vhost-rng and vhost-blk work here: {self._messages} messages, "
            f"{2 * self._size // _MIB} MiB moved, every byte checked, {time.monotonic() - start:.1f} s"
        )
        return 0

    def _failed(self, error: Exception) -> int:
        if isinstance(error, BrokenPipeError):
            raise error  # nobody reads what we print
        print(f"\nFAILED to {self._step}: {error}", file=sys.stderr)
        if self._daemon and self._daemon.status:
            print(f"{self._daemon.name} ended with status {self._daemon.status}", file=sys.stderr)
        if self._daemon and (tail := self._daemon.log_tail()):
            print(f"last lines of the log of {self._daemon.name}:", file=sys.stderr)
            print(*(f"  {line}" for line in tail), sep="\n", file=sys.stderr)
        return 1

    def _begin(self, step: str) -> None:
        self._step = step

    def _start(self, daemon: Daemon) -> Daemon:
        self._daemon = daemon
        self._begin(f"start {daemon.name}")
        return daemon

    def _show(self, line: str) -> None:
        try:
            print(self._wrap.fill(line))
        except BrokenPipeError:
            pass  # must not look like an error of the connection; whatever is printed next will say so

    def _connect(
        self, stack: ExitStack, daemon: Daemon, features: type[enum.IntFlag] | None = None
    ) -> Frontend:
        print(f"  {daemon.name}, process {daemon.pid}, listens on {daemon.socket}; a front-end connects:\n")
        self._begin(f"connect to {daemon.name}")
        tap = Tap(self._show, features)
        try:
            tap.connect(str(daemon.socket))
            frontend = stack.enter_context(connect(tap))
        except BaseException:
            tap.close()
            raise
        stack.callback(lambda: self._count(tap))
        return frontend

    def _count(self, tap: Tap) -> None:
        self._messages += tap.messages

    def _random_numbers(self, folder: Path) -> None:
        print("Random numbers")
        with ExitStack() as stack:
            daemon = stack.enter_context(self._start(Daemon("rng", folder, f"--seed={_SEED}")))
            rng = Rng(self._connect(stack, daemon))

            self._begin("read random numbers")
            got = bytearray()
            start = time.perf_counter()
            while (seconds := time.perf_counter() - start) < _RANDOM_TIME:
                got += rng.read(_RANDOM_PIECE)
            self._begin("check the random numbers against their seed")
            source, at = SeededSource(_SEED), 0
            while at < len(got):
                expected = source(len(got) - at)
                if got[at : at + len(expected)] != expected:
                    raise DaemonError(
                        f"of {len(got)} bytes, those from {at} are not the stream of seed {_SEED}"
                    )
                at += len(expected)
            print(f"\n  {len(got) / _MIB:.0f} MiB at {rate(len(got), seconds)}, all as seed {_SEED} has it")
            self._begin(f"stop {daemon.name}")

    def _disk(self, folder: Path) -> None:
        print("\nDisk")
        image = folder / "disk.img"
        self._begin("make a disk image")
        if (free := shutil.disk_usage(folder).free) < self._size:
            raise OSError(
                errno.ENOSPC,
                f"{folder} has room for {free // _MIB} MiB, {self._size // _MIB} are needed; "
                f"use a smaller --size or another TMPDIR",
            )
        with image.open("wb") as file:
            file.truncate(self._size)
        with ExitStack() as stack:
            options = f"--blk-file={image}", f"--serial={_SERIAL}"
            daemon = stack.enter_context(self._start(Daemon("blk", folder, *options)))
            disk = Blk(self._connect(stack, daemon, BlkFeature))
            print()
            self._begin("find the disk it should be")
            if (disk.capacity, disk.serial()) != (self._size, _SERIAL):
                raise DaemonError(
                    f"this disk has {disk.capacity} bytes and the serial number {disk.serial()!r}"
                )
            written = self._write(disk)
            read = self._read(disk)
            self._begin("compare what was written, read and stored")
            with image.open("rb") as file:
                stored = hashlib.file_digest(file, "sha256").hexdigest()
            if not written == read == stored:
                raise DaemonError(f"SHA-256 written {written}, read {read}, in the image {stored}")
            print(f"  SHA-256 written, read and in the image: {written}")
            self._latency(disk)
            self._begin(f"stop {daemon.name}")

    def _write(self, disk: Blk) -> str:
        self._begin("write to the disk")
        digest, data = hashlib.sha256(), bytearray(os.urandom(_STEP))
        with Progress("writing", self._size) as progress:
            for offset in range(0, self._size, _STEP):
                data[:8] = offset.to_bytes(8, "little")  # no two steps alike
                step = memoryview(data)[: self._size - offset]
                disk.write(offset, step)
                digest.update(step)
                step.release()
                progress.add(min(_STEP, self._size - offset))
            self._begin("flush the disk")
            disk.flush()
        return digest.hexdigest()

    def _read(self, disk: Blk) -> str:
        self._begin("read from the disk")
        digest = hashlib.sha256()
        with Progress("reading", self._size) as progress:
            for offset in range(0, self._size, _STEP):
                data = disk.read(offset, min(_STEP, self._size - offset))
                digest.update(data)
                progress.add(len(data))
        return digest.hexdigest()

    def _latency(self, disk: Blk) -> None:
        self._begin("read single blocks")
        places = random.Random(_SEED)
        times: list[float] = []
        start = last = time.perf_counter()
        while len(times) < _READS and last - start < _READ_TIME:
            disk.read(places.randrange(self._size // _READ_SIZE) * _READ_SIZE, _READ_SIZE)
            now = time.perf_counter()
            times.append(now - last)
            last = now
        times.sort()
        p50, p99 = (times[int(len(times) * part)] * 1e6 for part in (0.5, 0.99))
        print(
            f"  {len(times)} reads of 4 KiB, one after the other: {len(times) / (last - start):.0f}/s, "
            f"p50 {p50:.0f} us, p99 {p99:.0f} us"
        )
