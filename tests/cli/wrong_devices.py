# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices that do something wrong, as a program: ``wrong_devices.py NAME SOCKET``."""

import os
import sys
import time

import vhost
from vhost._core import lib

SERVED = 1000  # requests after which the worse ones show what they are


class Disk(vhost.Device):
    """A disk of zeros, which keeps nothing."""

    name = "disk"
    device_id = 2
    offers_config = True
    status = b"\0"

    def __init__(self) -> None:
        self.served = 0

    def config(self) -> bytes:
        return (1 << 20).to_bytes(8, "little")

    def process(self, chain: vhost.Chain) -> None:
        self.served += 1
        chain.read()
        chain.write(bytes(chain.writable - 1) + self.status)


class Failing(Disk):
    """Says that each request failed."""

    status = b"\1"


class Short(vhost.Device):
    """Entropy that never comes: a used length of 0."""

    name = "short"
    device_id = 4

    def process(self, chain: vhost.Chain) -> None:
        pass


class Dying(Disk):
    """Ends in the middle of its work."""

    def process(self, chain: vhost.Chain) -> None:
        super().process(chain)
        if self.served > SERVED:
            sys.stderr.write("out of luck\n")
            sys.stderr.flush()
            os._exit(3)


class Hanging(Disk):
    """Stops serving, and goes on living."""

    def process(self, chain: vhost.Chain) -> None:
        super().process(chain)
        if self.served > SERVED:
            time.sleep(60)


class Mute(Disk):
    """Serves, but tells nobody."""

    def handle(self, queue: vhost.Queue) -> float | None:
        queue.call_fd = -1
        return super().handle(queue)


class Lying(Disk):
    """Says that it has written 7 bytes, whatever it was asked for."""

    def handle(self, queue: vhost.Queue) -> float | None:
        while batch := queue.pop():
            for i, chain in enumerate(batch):
                self.process(chain)
                batch.cdata.chain[i].written = 7
                batch.cdata.chain[i].state = lib.VH_DONE
            batch.push()
        return None


class Confused(Disk):
    """Returns chains that were never given to it."""

    def handle(self, queue: vhost.Queue) -> float | None:
        while batch := queue.pop():
            for i in range(len(batch)):
                batch.cdata.chain[i].head ^= 1
                batch.cdata.chain[i].state = lib.VH_DONE
            batch.push()
        return None


if __name__ == "__main__":
    kinds = (Disk, Failing, Short, Dying, Hanging, Mute, Lying, Confused)
    vhost.serve({kind.__name__.lower(): kind for kind in kinds}[sys.argv[1]](), sys.argv[2])
