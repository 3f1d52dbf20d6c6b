# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The guest's kernel: Debian's, with its modules, as a package brings it."""

import gzip
import lzma
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import archive, cache
from tests.lab.peers import Peer
from tests.lab.prerequisites import Missing, tool

__all__ = ("LINUX", "Kernel", "debian_kernel")

# Where a kernel is found, best first: of the 6.12 series or newer for this machine.
SOURCES = {
    "": (("linux-image-amd64", "bookworm-backports"), ("linux-image-amd64", "trixie")),
    "arm64": (("linux-image-arm64", "bookworm"),),
    "s390x": (("linux-image-s390x", "bookworm"),),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and its modules, in the unpacked package ``root``."""

    version: str
    root: Path

    @property
    def image(self) -> Path:
        """What a boot loader loads."""
        return self.root / "boot" / f"vmlinuz-{self.version}"

    def modules(self, names: Sequence[str]) -> dict[str, bytes]:
        """The named modules and all they need, uncompressed, in an order in which they can be loaded.

        :returns: module name to content; what is built into the kernel is left out.
        :raises Missing: the kernel has no such module.
        """
        command = [
            tool("modprobe"),
            "-d",
            self.root,
            "-S",
            self.version,
            "-C",
            "/dev/null",
            "--show-depends",
            "-a",
        ]
        shown = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
        if shown.returncode != 0:
            raise Missing(f"kernel {self.version}: {shown.stderr.strip()}")
        found = {}
        for line in shown.stdout.splitlines():
            verb, _, path = line.strip().partition(" ")
            if verb == "insmod":
                file = Path(path)
                found[file.name.partition(".ko")[0].replace("-", "_")] = content(file)
        return found


def debian_kernel(architecture: str = "") -> Kernel:
    """The kernel that Debian's meta-package names today.

    :param architecture: Debian's name of the machine that it runs on; empty: this machine's.
    :raises Missing: this machine's apt cannot provide one.
    """
    reasons = []
    for meta, suite in SOURCES[architecture]:
        try:
            package = archive.dependency(meta, suite, "linux-image-", architecture)
            root = archive.unpacked([package], suite, architecture)
        except Missing as missing:
            reasons.append(str(missing))
            continue
        kernel = Kernel(package.removeprefix("linux-image-"), root)
        index_modules(kernel)
        return kernel
    raise Missing("no kernel for the guest: " + "; ".join(reasons))


LINUX = Peer("Linux", lambda: debian_kernel().version.partition("-")[0])


def index_modules(kernel: Kernel) -> None:
    # What the package's installation script would do: without it no tool finds a module.
    with cache.locked(kernel.root):
        if not (kernel.root / "lib").exists():
            (kernel.root / "lib").symlink_to("usr/lib")
        if not (kernel.root / "lib/modules" / kernel.version / "modules.softdep").exists():
            subprocess.run([tool("depmod"), "-b", kernel.root, kernel.version], check=True)


def content(file: Path) -> bytes:
    # A module as insmod takes it.
    data = file.read_bytes()
    if file.suffix == ".xz":
        return lzma.decompress(data)
    if file.suffix == ".gz":
        return gzip.decompress(data)
    if file.suffix != ".ko":
        raise Missing(f"{file}: the lab cannot uncompress {file.suffix} modules")
    return data
