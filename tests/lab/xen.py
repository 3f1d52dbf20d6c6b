# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab under Xen: a Debian root of its own for dom0, the wheels of the Xen build in it, pytest on top."""

import gzip
import importlib
import importlib.util
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import wheels
from tests.lab.dom0 import Dom0
from tests.lab.initramfs import Initramfs
from tests.lab.kernel import Kernel, debian_kernel
from tests.lab.userland import Userland, debian
from tests.lab.wheels import CHECKOUT

__all__ = ("RELEASES", "Release", "emulator", "paths", "run")

HERE = Path(__file__).parent
MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay")
PYTEST = (
    "-p",
    "pytest_timeout",
    "-p",
    "no:cacheprovider",
    "--import-mode=append",
    "--junitxml=/results/junit.xml",
)


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Xen, as a suite of Debian has it."""

    version: str
    suite: str

    @property
    def packages(self) -> tuple[str, ...]:
        """What dom0's root is made of, with all that these depend on."""
        return (
            *(
                f"xen-utils-{self.version}",
                f"xen-hypervisor-{self.version}-amd64",
                "xenstore-utils",
                "python3",
            ),
            *(
                "base-files",
                "bash",
                "busybox-static",
                "coreutils",
                "dash",
                "findutils",
                "grep",
                "kmod",
                "libc-bin",
            ),
            *("less", "mount", "ncurses-base", "procps", "sed", "util-linux"),
        )

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
    seconds: float,
    options: Sequence[str] = (),
) -> int:
    """Boots dom0 and runs pytest there, or a shell on the terminal if ``arguments`` are None.

    :param results: an existing folder for junit.xml, the logs, and the coverage data.
    :param arguments: for pytest; what they name is relative to the checkout.
    :param seconds: how long the machine may run.
    :param options: more for Xen's command line.
    :returns: the status of pytest.
    :raises LostDom0: dom0 crashed or hangs.
    :raises Missing: something the lab needs is not on this machine.
    """
    for name in ("junit.xml", "pytest.log", "status"):
        (results / name).unlink(missing_ok=True)  # of an earlier run
    root, kernel = release.userland(), debian_kernel()
    with tempfile.TemporaryDirectory(prefix="vhost-lab-") as folder:
        work = Path(folder)
        (hypervisor,) = (root.root / "boot").glob(f"xen-{release.version}-*.gz")
        (work / "xen").write_bytes(gzip.decompress(hypervisor.read_bytes()))
        write_initramfs(root, kernel, work / "initramfs.cpio")
        fill_lab(work / "lab", kernel, arguments)
        dom0 = Dom0(
            qemu=emulator(),
            xen=work / "xen",
            kernel=kernel.image,
            initramfs=work / "initramfs.cpio",
            shares={
                "root": root.root,
                "tests": wheels.test_layer(root),
                "own": wheels.own_layer(root),
                "modules": (kernel.root / "lib/modules").resolve(),
                "lab": work / "lab",
            },
            results=results,
            options=options,
        )
        if arguments is None:
            return dom0.run(seconds, terminal=True)
        return dom0.run(seconds, follow=results / "pytest.log")


def write_initramfs(root: Userland, kernel: Kernel, target: Path) -> None:
    # Enough to mount the shares.
    made = Initramfs()
    made.device("/dev/console", 5, 1)
    made.file("/init", (HERE / "dom0-init.sh").read_bytes(), 0o755)
    made.file("/bin/busybox", (root.root / "usr/bin/busybox").read_bytes(), 0o755)
    modules = kernel.modules(MODULES)
    for name, content in modules.items():
        made.file(f"/modules/{name}.ko", content)
    made.file("/modules/order", "".join(f"{name}\n" for name in modules).encode())
    made.write(target)


def fill_lab(lab: Path, kernel: Kernel, arguments: Sequence[str] | None) -> None:
    # The folder /lab of dom0. The tests are copied: dom0 does not see changes in a folder that it has read.
    lab.mkdir()
    checkout = lab / "checkout"
    for name in ("tests", "packages/pyxenctrl/tests"):
        shutil.copytree(CHECKOUT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(CHECKOUT / "pyproject.toml", checkout / "pyproject.toml")
    shutil.copyfile(HERE / "dom0.sh", lab / "dom0.sh")
    shutil.copyfile(HERE / "coveragerc", lab / "coveragerc")
    shutil.copyfile(kernel.image, lab / "vmlinuz")
    if importlib.util.find_spec("tests.lab.xen_guest"):
        importlib.import_module("tests.lab.xen_guest").write_guest(kernel, lab / "guest.cpio")
    if arguments is not None:
        (lab / "arguments").write_text(shlex.join((*PYTEST, *arguments)))
