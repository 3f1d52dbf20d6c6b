# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab by hand: ``python -m tests.lab xen`` runs the Xen tests in dom0, or gives a shell there;
``... guest`` gives a shell in a guest; ``... fetch`` downloads only.
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.lab import aarch64, archive, block_tools, guest, rust, s390x, testpmd, uml, wheels, xen
from tests.lab.backends import BACKENDS
from tests.lab.daemons import ours
from tests.lab.dom0 import LOST, LostDom0
from tests.lab.kernel import debian_kernel
from tests.lab.machine import vhost_user
from tests.lab.prerequisites import Missing
from tests.lab.process import Process
from tests.lab.root import write_root

XEN_SECONDS = 1800  # a multiple of what the tests take, since an emulator on a busy machine is slow


def fetch() -> int:
    """Downloads what the lab uses; afterwards only the wheels of a changed checkout need a network."""
    print(debian_kernel().image)
    print(archive.unpacked(["libblkio1"], "trixie"))
    for suite in uml.SUITES:
        print(uml.uml_kernel(suite).root)
    print(uml.tools())
    for other in (s390x, aarch64):
        print(debian_kernel(other.MACHINE).image, other.qemu().root, other.busybox(), sep="\n")
    for userland in (testpmd.dpdk(), *(backend.userland() for backend in BACKENDS), xen.emulator()):
        print(userland.root)
    print(rust.front_end())
    for userland in block_tools.userlands():
        print(userland.root)
    for release in xen.RELEASES.values():
        userland = release.userland()
        print(userland.root, wheels.test_layer(userland), wheels.own_layer(userland), sep="\n")
    return 0


def run_xen(arguments: argparse.Namespace) -> int:
    """pytest or a shell in dom0; the status is pytest's, or 70 if dom0 was lost."""
    results = arguments.results or Path(tempfile.mkdtemp(prefix="vhost-xen-"))
    results.mkdir(parents=True, exist_ok=True)
    wanted = None if arguments.shell else xen.paths(arguments.arguments)
    try:
        status = xen.run(
            xen.RELEASES[arguments.xen],
            results.resolve(),
            wanted,
            seconds=arguments.seconds or (None if arguments.shell else XEN_SECONDS),
            options=arguments.xen_option,
        )
    except LostDom0 as lost:
        print(f"lab: {lost}", file=sys.stderr)
        status = LOST
    if (coverage := results / "coverage.txt").exists():
        # All of it where all tests have run.
        lines = coverage.read_text().splitlines()
        print("lab: coverage in dom0", *(lines[-1:] if arguments.arguments else lines), sep="\n")
    print(f"lab: Xen {arguments.xen}: status {status}; the results are in {results}")
    return status


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
    in_dom0 = commands.add_parser("xen", help="pytest in dom0, with the wheels of the Xen build")
    in_dom0.add_argument("--xen", choices=xen.RELEASES, default="4.17", help="release of Xen (%(default)s)")
    in_dom0.add_argument("--shell", action="store_true", help="a shell in dom0 instead of pytest")
    in_dom0.add_argument("--results", metavar="DIR", type=Path, help="for junit.xml, coverage and logs")
    in_dom0.add_argument("--seconds", type=float, help="dom0 may run so long (1800; with a shell, for ever)")
    in_dom0.add_argument("--xen-option", action="append", default=[], help="more for Xen's command line")
    in_dom0.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="for pytest")
    arguments = parser.parse_args()
    try:
        if arguments.command == "fetch":
            return fetch()
        return run_xen(arguments) if arguments.command == "xen" else shell(arguments.disk)
    except Missing as missing:
        print(f"the lab lacks something: {missing}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
