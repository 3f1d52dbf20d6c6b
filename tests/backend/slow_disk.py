# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A disk that takes its time to clear ranges; as a program, a daemon of one that can be killed.

``slow_disk.py SOCKET MILLISECONDS``, of each MiB; says what it clears, a line for each piece.
"""

import sys
import threading
import time

import vhost
from vhost.devices.blk import Blk
from vhost.devices.disk import NullDisk

MIB = 1 << 20
SIZE = 16 << 30
#: Seconds that a MiB takes: the whole disk, several minutes.
PACE = 0.02


class SlowDisk(NullDisk):
    """Keeps nothing, but notes what is cleared; `pace` is how many seconds that takes for a MiB."""

    def __init__(self, pace: float = PACE) -> None:
        super().__init__(SIZE)
        self.pace = pace
        self.cleared: list[tuple[int, int]] = []
        self._news = threading.Condition()

    def discard(self, offset: int, length: int) -> None:
        self._clear(offset, length)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        self._clear(offset, length)

    def _clear(self, offset: int, length: int) -> None:
        if self.pace:
            time.sleep(length / MIB * self.pace)
        with self._news:
            self.cleared.append((offset, length))
            self._news.notify_all()

    def wait(self, pieces: int, timeout: float = 30.0) -> None:
        """Until so many more pieces are cleared."""
        with self._news:
            wanted = len(self.cleared) + pieces
            assert self._news.wait_for(lambda: len(self.cleared) >= wanted, timeout), "nothing is cleared"

    def start_over(self, pace: float) -> list[tuple[int, int]]:
        """Forget what was cleared, and return it; what comes is cleared at another pace."""
        with self._news:
            cleared, self.cleared, self.pace = self.cleared, [], pace
        return cleared


class Telling(SlowDisk):
    """One that tells what it clears on the standard output."""

    def _clear(self, offset: int, length: int) -> None:
        super()._clear(offset, length)
        sys.stdout.write(f"{offset} {length}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    vhost.serve(Blk(Telling(float(sys.argv[2]) / 1000)), sys.argv[1])
