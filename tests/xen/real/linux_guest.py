# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest of Xen that runs Linux and one program, a virtio driver: see tests/lab/xen_guest/guest.h.

What the driver tells through xenstore is read here; its memory is its own, and nobody here maps it.
"""

import contextlib
import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pyxenctrl import Control, Store

from .frontend import RingPlace

__all__ = ("MEMORY", "LinuxGuest", "LostGuest")

KERNEL, RAMDISK = Path("/lab/vmlinuz"), Path("/lab/guest.cpio")
MEMORY = 128 << 20

BOOT_SECONDS = 240
WORK_SECONDS = 240
COMMAND_SECONDS = 120

CONFIGURATION = """\
name = "{name}"
type = "{type}"
kernel = "{kernel}"
ramdisk = "{ramdisk}"
memory = {memory}
vcpus = 1
tsc_mode = "native"
extra = "console=hvc0 loglevel=5 panic=-1 mitigations=off lsm= {options}"
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
"""


class LostGuest(Exception):
    """The guest crashed, hangs, has met with something it did not expect, or never came up."""


class LinuxGuest:
    """A running guest. A context manager that destroys it in the end.

    One run of the driver follows the other: :meth:`ring`, :meth:`result`, :meth:`release`, :meth:`again`.

    :param domain: its type, ``pv`` or ``pvh``.
    :param work: folder for its configuration and the log of ``xl``.
    :param options: of the first run, by the names in guest.h.
    :raises LostGuest: there is no such domain afterwards.
    """

    def __init__(self, domain: str, work: Path, **options: str | int) -> None:
        self.name = f"linux-{domain}-{os.getpid()}"
        self.run = 0
        configuration = work / f"{self.name}.cfg"
        configuration.write_text(
            CONFIGURATION.format(
                name=self.name,
                type=domain,
                kernel=KERNEL,
                ramdisk=RAMDISK,
                memory=MEMORY >> 20,
                options=words(options),
            )
        )
        log = work / f"{self.name}.log"
        # "-e": no process of xl stays. Its status says little: it was seen to abort when the domain was up.
        argv: list[str | os.PathLike[str]] = ["xl", "create", "-e", configuration]
        with open(log, "wb") as output:
            subprocess.run(argv, stdout=output, stderr=output, timeout=COMMAND_SECONDS, check=False)
        found = xl("domid", self.name)
        if found is None:
            raise LostGuest(f"xl has made no domain {self.name}:\n{log.read_text(errors='replace')}")
        self.domid = int(found)
        self._console = -1
        self._control = Control()
        self._store = Store()
        self._home = self._store.domain_path(self.domid)
        self._store.watch(f"{self._home}/data", "told")
        self._store.watch("@releaseDomain", "ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def destroy(self) -> None:
        """Ends the domain, whatever it does; it can be called again."""
        if self._console >= 0:
            os.close(self._console)
            self._console = -1
        self._store.close()
        self._control.close()
        xl("destroy", str(self.domid))

    # ---- a run of the driver ----

    def ring(self) -> RingPlace:
        """Where the ring of this run is, once the driver has laid it out."""
        self.wait("ready", BOOT_SECONDS)
        size, descriptor, avail, used = (int(word, 16) for word in self.value("ring").split())
        return RingPlace(size, descriptor, avail, used)

    def areas(self) -> list[tuple[str, int, int]]:
        """All memory of this run, once the ring is there: (``ring``, ``out`` or ``in``; address; bytes)."""
        lines = (line.split() for line in self.value("areas").splitlines())
        return [(group, int(address, 16), int(size, 16)) for group, address, size in lines]

    def port(self) -> int:
        """The event channel that the driver offers to the control domain, once the ring is there."""
        return int(self.value("port"), 16)

    def result(self) -> list[str]:
        """What the driver says in the end, in words; the first is ``ok`` if it is content."""
        return self.wait("result", WORK_SECONDS).split()

    def release(self) -> int:
        """Lets the driver take its memory back.

        :returns: how many of its grants were still in use by then.
        """
        self.write("release", "1")
        return int(self.wait("left", WORK_SECONDS), 16)

    def again(self, **options: str | int) -> None:
        """Starts the next run, after :meth:`release`."""
        self.write("again", words(options))
        self.run += 1

    # ---- what the driver has published ----

    def wait(self, name: str, seconds: float) -> str:
        """A value of this run, once it is there.

        :raises LostGuest: the driver has given up, the domain has ended, or it takes longer than ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while (value := self.read(name)) is None:
            result = self.read("result")
            if result is not None and not result.startswith("ok"):
                raise self._lost(f"says: {result}")
            domain = self._control.info(self.domid)
            if domain is None or domain.dying or domain.shutdown is not None:
                raise self._lost(f"has ended: {domain}")
            left = deadline - time.monotonic()
            if left < 0 or self._store.read_watch(left) is None:
                raise self._lost(f"has no {name!r} after {seconds} s, progress {self.read('progress')}")
        return value

    def value(self, name: str) -> str:
        """A value of this run that is there."""
        value = self.read(name)
        assert value is not None, f"{self.name} has published no {name!r}"
        return value

    def read(self, name: str) -> str | None:
        """A value of this run, None if it is not there."""
        value = self._store.read(f"{self._home}/data/{self.run}/{name}")
        return None if value is None else value.decode()

    def write(self, name: str, value: str) -> None:
        """Tells the driver something."""
        self._store.write(f"{self._home}/data/{self.run}/{name}", value.encode())

    def _lost(self, what: str) -> LostGuest:
        return LostGuest(f"{self.name}, run {self.run}, {what}\nconsole:\n{self._console_text()}")

    def _console_text(self) -> str:
        # What xenconsoled has kept for whoever looks at the console.
        if self._console < 0:
            path = self._store.read(f"{self._home}/console/tty")
            if not path:
                return "(none)"
            self._console = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        text = bytearray()
        with contextlib.suppress(BlockingIOError):
            while select.select([self._console], [], [], 1)[0] and (part := os.read(self._console, 4096)):
                text += part
        return "\n".join(text.decode(errors="replace").splitlines()[-40:])


def words(options: dict[str, str | int]) -> str:
    # Options of the driver as it reads them.
    return " ".join(f"driver.{name}={value}" for name, value in options.items())


def xl(*arguments: str) -> str | None:
    # What xl prints, None if it fails.
    argv = ["xl", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
