# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Streams of random bytes by TCP from and to guests, with a checksum over what has arrived.

A guest listens, and whoever connects is a guest or this machine. busybox does both, with the socket as input
and output of a command: with the guest's own input, which ends at once, its ``nc`` ends the stream as well.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from tests.lab.guest import Guest
from tests.lab.namespace import Namespace
from tests.lab.prerequisites import tool

__all__ = (
    "AMOUNT",
    "SECONDS",
    "Source",
    "connect",
    "connect_here",
    "listen",
    "result",
    "send",
    "take",
)

MIB = 1 << 20
#: Of the data of a transfer, MiB.
AMOUNT = int(os.environ.get("VHOST_LAB_NET_MIB", "64"))
#: A transfer has failed after that.
SECONDS = 60 + AMOUNT
PIECE = 8  # MiB


@dataclass(frozen=True, slots=True)
class Source:
    """What is sent: a file with random bytes again and again, each time behind a line with a number."""

    image: Path
    pieces: int

    @classmethod
    def make(cls, work: Path) -> "Source":
        """Some MiB of random bytes, enough times for a transfer."""
        image = work / "random.img"
        if not image.exists():
            image.write_bytes(os.urandom(PIECE * MIB))
        return cls(image, -(-AMOUNT // PIECE))

    @property
    def devices(self) -> tuple[str, ...]:
        """QEMU's arguments for a disk with these bytes, which we do not serve."""
        return "-drive", f"file={self.image},if=virtio,format=raw,readonly=on"

    @property
    def size(self) -> int:
        """Bytes, at least."""
        return self.pieces * PIECE * MIB

    def digest(self) -> str:
        """SHA-256 of all of it."""
        whole, data = hashlib.sha256(), self.image.read_bytes()
        for number in range(self.pieces):
            whole.update(f"{number}\n".encode())
            whole.update(data)
        return whole.hexdigest()


def send(source: Source, image: str = "/dev/vda") -> str:
    """The command that writes all of it.

    :param image: where the random bytes are for the one who runs it.
    """
    return f"n=0; while [ $n -lt {source.pieces} ]; do echo $n; cat {image}; n=$((n + 1)); done"


def take(into: str) -> str:
    """The command that reads to the end, and leaves the checksum in a file."""
    return f"sha256sum > {into}.new; mv {into}.new {into}"


def listen(guest: Guest, port: int, command: str) -> None:
    """Run a command in a guest for the one who will connect; returns when the guest listens."""
    guest.run(f"timeout {SECONDS} nc -l -p {port} -e sh -c '{command}' > /tmp/{port}.log 2>&1 &")
    guest.run(f"while ! netstat -ltn | grep -q :{port}; do sleep 0.1; done")


def connect(guest: Guest, address: str, port: int, command: str) -> None:
    """Have a guest connect to another one that listens, and run a command while others go on."""
    guest.run(f"timeout {SECONDS} nc {address} {port} -e sh -c '{command}' > /tmp/to-{port}.log 2>&1 &")


def connect_here(namespace: Namespace, address: str, port: int, command: str) -> None:
    """Connect from a network of this machine, and run a command; returns when it has ended."""
    said = namespace.run(f"{tool('busybox')} nc {address} {port} -e sh -c '{command}'", SECONDS)
    assert said == "", said


def result(guest: Guest, file: str) -> str:
    """What a guest has left in a file, as soon as it is there."""
    guest.run(f"while [ ! -e {file} ]; do sleep 0.1; done", SECONDS)
    return guest.run(f"cut -d ' ' -f 1 {file}")
