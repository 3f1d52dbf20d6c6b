# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A machine that boots Xen under QEMU, without KVM, and its first domain, dom0.

What runs in dom0 ends with a status (0 to 69 are its own). That dom0 or Xen crashes, hangs, or does not come
up, is :class:`LostDom0`, with the last words of the console: no statement about what ran there.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.console import last_words
from tests.lab.process import Process
from tests.lab.userland import Userland

__all__ = ("LOST", "Dom0", "LostDom0")

LOST = 70  # the status of dom0.sh when dom0 does not get to what it was to run
ENDED = 85  # QEMU's, when dom0-init.sh has ended the machine
# Without the features that QEMU 7.2 does not emulate well enough for Xen: an IRET to a PV kernel under SMAP,
# MWAIT with a hint, RDTSCP in a guest, XSAVE in a guest's signal frame.
CPU = "max,-smap,-monitor,-rdtscp,-xsave"
XEN = "console=com1 com1=115200 loglvl=all guest_loglvl=all spec-ctrl=no xpti=no"
FOLLOW_SECONDS = 0.5
LINUX = "console=hvc0 panic=-1 oops=panic mitigations=off lsm= loglevel=5"


class LostDom0(Exception):
    """Dom0 or Xen crashed, hangs, or never got to its work."""


@dataclass(frozen=True, slots=True)
class Dom0:
    """The parts of the machine.

    :param qemu: the userland whose QEMU emulates it.
    :param xen: the hypervisor, an ELF file.
    :param kernel: dom0's kernel.
    :param initramfs: dom0's first file system, with ``dom0-init.sh``.
    :param shares: read-only folders by the tags under which dom0 finds them.
    :param results: folder that dom0 writes to; the console goes there too.
    :param memory: of the machine and of dom0, MiB; the rest is for Xen and other domains.
    :param options: more for Xen's command line.
    """

    qemu: Userland
    xen: Path
    kernel: Path
    initramfs: Path
    shares: dict[str, Path]
    results: Path
    memory: tuple[int, int] = (2048, 1024)
    options: Sequence[str] = ()

    @property
    def console(self) -> Path:
        """What Xen and dom0 print."""
        return self.results / "console.log"

    def run(self, seconds: float | None, *, terminal: bool = False, follow: Path | None = None) -> int:
        """Boots, and waits for the end.

        :param seconds: how long it may take; for ever if None.
        :param terminal: the console is this process's terminal, instead of a file.
        :param follow: a file in the results whose content is copied to standard output as it grows.
        :returns: the status of what ran in dom0.
        :raises LostDom0: it has none, or it takes longer.
        """
        status = self.results / "status"
        status.unlink(missing_ok=True)
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            environment = {"QEMU_MODULE_DIR": str(self.qemu.root / "usr/lib/x86_64-linux-gnu/qemu")}
            process = stack.enter_context(
                Process(
                    self.command(terminal),
                    self.results / "qemu.log",
                    environment=environment,
                    terminal=terminal,
                )
            )
            if follow:
                stack.enter_context(followed(follow))
            try:
                ended = process.wait(seconds)
            except TimeoutError:
                raise self.lost(f"still runs after {seconds:.0f} s", process) from None
        if ended != ENDED or not status.exists():
            after = f"after {time.monotonic() - started:.0f} s"
            raise self.lost(f"is gone {after}, without a result (QEMU's status: {ended})", process)
        if (value := int(status.read_text())) == LOST:
            raise self.lost("did not get to its work", process)
        return value

    def lost(self, what: str, process: Process) -> LostDom0:
        # The error, with all last words.
        text = [f"dom0 {what}", *last_words(self.console)]
        if last := process.tail():
            text += [f"{process.log.name}:", last]
        return LostDom0("\n".join(text))

    def command(self, terminal: bool) -> list[str | os.PathLike[str]]:
        """QEMU's command line."""
        whole, own = self.memory
        data = self.qemu.root / "usr/share"
        shares = [
            *((tag, folder, "readonly=on,multidevs=remap") for tag, folder in self.shares.items()),
            ("results", self.results, "writeout=immediate"),
        ]
        console = f"file,path={quoted(self.console)}"
        if terminal:
            console = f"stdio,mux=on,signal=off,logfile={quoted(self.console)}"
        arguments: list[str | os.PathLike[str]] = [
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-L", data / "qemu", "-L", data / "seabios"),
            *("-accel", "tcg", "-cpu", CPU, "-m", str(whole)),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"),
            *("-chardev", f"{console},id=console", "-serial", "chardev:console"),
            *("-kernel", self.xen),
            *("-append", " ".join((XEN, f"dom0_mem={own}M,max:{own}M", *self.options))),
            # Multiboot modules, separated by a comma; what follows the file's name is its command line.
            *("-initrd", f"{self.kernel} {LINUX},{self.initramfs}"),
        ]
        if terminal:
            arguments += ["-mon", "chardev=console"]
        for tag, folder, options in shares:
            arguments += ["-fsdev", f"local,id={tag},path={quoted(folder)},security_model=none,{options}"]
            arguments += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        return self.qemu.command("usr/bin/qemu-system-x86_64", *arguments)


def quoted(path: Path) -> str:
    # As the value of an option of QEMU's, where a comma ends a value.
    return str(path).replace(",", ",,")


@contextlib.contextmanager
def followed(file: Path) -> Iterator[None]:
    # Meanwhile copies what is in a file, and what comes to it, to standard output.
    ended = threading.Event()

    def copy() -> None:
        done = 0
        while True:
            last = ended.wait(FOLLOW_SECONDS)
            if file.exists():
                with open(file, "rb") as source:
                    source.seek(done)
                    new = source.read()
                done += len(new)
                sys.stdout.buffer.write(new)
                sys.stdout.flush()
            if last:
                return

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
