# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab under Xen: a Debian root of its own for dom0, the wheels of the Xen build in it, pytest on top."""

import gzip
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import wheels
from tests.lab.coverage import CONFIGURATION, report
from tests.lab.dom0 import Dom0
from tests.lab.initramfs import Initramfs
from tests.lab.kernel import Kernel, debian_kernel
from tests.lab.userland import Userland, debian
from tests.lab.wheels import CHECKOUT
from tests.lab.xen_guest import write_guest

__all__ = ("RELEASES", "Release", "emulator", "paths", "run")

INIT, DOM0 = (Path(__file__).with_name(name) for name in ("dom0-init.sh", "dom0.sh"))
TESTS = ("tests", "packages/pyxenctrl/tests")
MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay")
PYTEST = (
    *("-p", "pytest_timeout", "-p", "no:cacheprovider", "--import-mode=append"),
    "--junitxml=/results/junit.xml",
    # An emulated processor is slow, a busy machine makes it slower.
    *("-o", "timeout=300", "-o", "faulthandler_timeout=240"),
)
# Programs of dom0's root, besides Xen's.
PROGRAMS = (
    *("base-files", "bash", "busybox-static", "coreutils", "dash", "findutils", "grep", "kmod", "less"),
    *("libc-bin", "mount", "ncurses-base", "procps", "python3", "sed", "util-linux"),
)


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Xen, as a suite of Debian has it."""

    version: str
    suite: str

    @property
    def packages(self) -> tuple[str, ...]:
        """What dom0's root is made of, with all that these depend on."""
        xen = (f"xen-utils-{self.version}", f"xen-hypervisor-{self.version}-amd64", "xenstore-utils")
        return (*xen, *PROGRAMS)

    def userland(self) -> Userland:
        """Dom0's root."""
        return debian(self.packages, self.suite, accounts=True)


RELEASES = {release.version: release for release in (Release("4.17", "bookworm"), Release("4.20", "trixie"))}


def emulator() -> Userland:
    """The userland of QEMU 7.2.

    Later ones (9.1 to 11.1) take a read of CR2 for one of CR0 under SVM: no Linux runs in a PVH domain.
    """
    return debian(("qemu-system-x86",), "bookworm")


def paths(arguments: Sequence[str]) -> list[str]:
    """pytest's ``arguments``, with the Xen tests added if they name no tests."""
    named = any((CHECKOUT / argument.partition("::")[0]).exists() for argument in arguments)
    return [*arguments] if named else [*arguments, "tests/xen"]


def run(
    release: Release,
    results: Path,
    arguments: Sequence[str] | None,
    *,
    seconds: float | None,
    options: Sequence[str] = (),
    checkout: Path = CHECKOUT,
) -> int:
    """Boots dom0 and runs pytest there, or a shell on the terminal if ``arguments`` are None.

    :param results: an existing folder for junit.xml, the logs, and coverage; those of an earlier run go.
    :param arguments: for pytest; what they name is relative to the checkout.
    :param seconds: how long the machine may run; for ever if None.
    :param options: more for Xen's command line.
    :param checkout: where the tests and pytest's settings are.
    :returns: the status of pytest.
    :raises LostDom0: dom0 crashed or hangs.
    :raises Missing: something the lab needs is not on this machine.
    """
    for pattern in ("junit.xml", "*.log", "coverage.*"):
        for old in results.glob(pattern):
            old.unlink()
    root, kernel = release.userland(), debian_kernel()
    own = wheels.own_layer(root)
    with tempfile.TemporaryDirectory(prefix="vhost-lab-") as folder:
        work = Path(folder)
        (hypervisor,) = (root.root / "boot").glob(f"xen-{release.version}-*.gz")
        (work / "xen").write_bytes(gzip.decompress(hypervisor.read_bytes()))
        write_initramfs(root, kernel, work / "initramfs.cpio")
        lab = work / "lab"
        copy_tests(checkout, lab / "checkout")
        for script in (DOM0, CONFIGURATION):
            shutil.copyfile(script, lab / script.name)
        shutil.copyfile(kernel.image, lab / "vmlinuz")
        write_guest(kernel, lab / "guest.cpio")
        if arguments is not None:
            (lab / "arguments").write_text(shlex.join((*PYTEST, *arguments)))
        dom0 = Dom0(
            qemu=emulator(),
            xen=work / "xen",
            kernel=lab / "vmlinuz",
            initramfs=work / "initramfs.cpio",
            shares={
                "root": root.root,
                "tests": wheels.test_layer(root),
                "own": own,
                "modules": (kernel.root / "lib/modules").resolve(),
                "lab": lab,
            },
            results=results,
            options=options,
        )
        if arguments is None:
            return dom0.run(seconds, terminal=True)
        status = dom0.run(seconds, follow=results / "pytest.log")
    report(root, own, results)
    return status


def write_initramfs(root: Userland, kernel: Kernel, target: Path) -> None:
    # Enough to mount the shares.
    made = Initramfs()
    made.device("/dev/console", 5, 1)  # the kernel opens it before the first program runs
    made.file("/init", INIT.read_bytes(), 0o755)
    made.file("/bin/busybox", (root.root / "usr/bin/busybox").read_bytes(), 0o755)
    modules = kernel.modules(MODULES)
    for name, content in modules.items():
        made.file(f"/modules/{name}.ko", content)
    made.file("/modules/order", "".join(f"{name}\n" for name in modules).encode())
    made.write(target)


def copy_tests(checkout: Path, target: Path) -> None:
    # A copy, since dom0 does not see changes in a folder that it has read.
    target.mkdir(parents=True)
    for name in TESTS:
        if (checkout / name).exists():
            shutil.copytree(checkout / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(checkout / "pyproject.toml", target / "pyproject.toml")
