# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Live migration: a guest goes from one QEMU to another one on this machine."""

from collections.abc import Sequence
from pathlib import Path

from tests.lab.guest import Guest
from tests.lab.process import Process

__all__ = ("migrate",)

END_SECONDS = 60


class Destination(Guest):
    """A QEMU to which a guest will come: nothing boots there."""

    def _up(self) -> str:
        self.qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        return ""


def migrate(
    guest: Guest, argv: Sequence[str], logs: Path, witnesses: Sequence[Process] = (), *, socket: Path
) -> None:
    """Moves a running guest to a new QEMU; the old one ends. The object is then the guest in its new place.

    :param argv: of the new QEMU; it differs from the old one's in the sockets of backends.
    :param logs: folder for what the new one writes.
    :param socket: a path by which the two meet; it must be short.
    :raises AssertionError: the old one fails.
    :raises OSError: it takes too long.
    """
    destination = Destination((*argv, "-incoming", f"unix:{socket}"), logs, witnesses)
    try:
        destination.boot = guest.boot
        guest.qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        guest.qmp.execute("migrate", uri=f"unix:{socket}")
        for end in (guest, destination):
            end.qmp.await_event("MIGRATION", status="completed")
        guest.qmp.execute("quit")
        status = guest.process.wait(END_SECONDS)
        assert status == 0, f"QEMU ended with {status}, left by its guest:\n{guest.process.tail()}"
    except BaseException:
        destination.close()
        raise
    guest.become(destination)
