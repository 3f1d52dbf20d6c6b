# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab by hand: ``python -m tests.lab guest`` gives a shell in a guest, ``... fetch`` downloads only."""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.lab import archive, guest
from tests.lab.daemons import ours
from tests.lab.kernel import debian_kernel
from tests.lab.machine import vhost_user
from tests.lab.prerequisites import Missing
from tests.lab.process import Process
from tests.lab.root import write_root


def fetch() -> int:
    """Downloads what the lab's tests would; afterwards they need no network."""
    print(debian_kernel().image)
    print(archive.unpacked(["libblkio1"], "trixie"))
    return 0


def shell(disks: list[Path]) -> int:
    """A shell on the console of a guest with vhost-rng and, for each image, vhost-blk; ``exit`` ends it."""
    kernel = debian_kernel()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vhost-lab-")))
        write_root(kernel, work / "root.cpio")
        rng = stack.enter_context(ours("vhost-rng", name="rng", work=work, logs=work))
        daemons, devices = [rng], [*vhost_user("vhost-user-rng-pci", rng.socket, "rng")]
        for index, disk in enumerate(disks):
            name = f"disk{index}"
            blk = stack.enter_context(ours("vhost-blk", "--blk-file", disk, name=name, work=work, logs=work))
            daemons.append(blk)
            devices += vhost_user("vhost-user-blk-pci,num-queues=1", blk.socket, name)
        argv = guest.machine(kernel.image, work / "root.cpio", arguments="lab.shell")
        console = ("-serial", "mon:stdio", "-no-reboot")
        qemu = stack.enter_context(Process([*argv, *devices, *console], work / "qemu.log", terminal=True))
        status = qemu.wait(None)
        for daemon in daemons:
            print(f"--- {daemon.log.name}", daemon.tail(), sep="\n")
    return status


def main() -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser("python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="download the packages the lab uses")
    by_hand = commands.add_parser("guest", help="a shell in a guest with our daemons; control-A X kills it")
    by_hand.add_argument(
        "--disk", metavar="IMAGE", type=Path, action="append", default=[], help="serve this too"
    )
    arguments = parser.parse_args()
    try:
        return fetch() if arguments.command == "fetch" else shell(arguments.disk)
    except Missing as missing:
        print(f"the lab lacks something: {missing}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
