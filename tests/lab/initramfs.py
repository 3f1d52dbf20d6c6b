# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""An initial RAM file system: files in, a cpio archive of the "newc" form out. Needs neither root nor cpio.

The form: a header of six octal digits and thirteen fields of eight hexadecimal digits, the name, the content,
padded to four bytes; see the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import re
import stat
import subprocess
from pathlib import Path, PurePosixPath

from tests.lab.prerequisites import Missing, tool

__all__ = ("Initramfs",)


class Initramfs:
    """Files of a guest's root, in the order added; folders come into being as files need them."""

    def __init__(self) -> None:
        self._archive = bytearray()
        self._known: set[PurePosixPath] = {PurePosixPath("/")}

    def folder(self, path: str) -> None:
        """Adds an empty folder, and those above it."""
        self._parents(PurePosixPath(path))

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Adds a file."""
        self._parents(PurePosixPath(path).parent)
        self._entry(PurePosixPath(path), stat.S_IFREG | mode, content)

    def device(self, path: str, major: int, minor: int) -> None:
        """Adds a node for a character device."""
        self._parents(PurePosixPath(path).parent)
        self._entry(PurePosixPath(path), stat.S_IFCHR | 0o600, device=(major, minor))

    def program(self, path: str, source: Path) -> None:
        """Adds a program of this machine as ``path``, and the libraries it needs where it looks for them.

        :raises Missing: a library is not on this machine.
        """
        self.file(path, source.read_bytes(), 0o755)
        for library in libraries(source):
            if PurePosixPath(library) not in self._known:
                self.file(str(library), library.read_bytes(), 0o755)

    def write(self, target: Path) -> None:
        """Writes the archive. It is not compressed: an emulated guest would spend seconds on it."""
        target.write_bytes(self._archive + entry("TRAILER!!!", 0, 0))

    def _parents(self, folder: PurePosixPath) -> None:
        for path in (*reversed(folder.parents), folder):
            if path not in self._known:
                self._entry(path, stat.S_IFDIR | 0o755)

    def _entry(
        self, path: PurePosixPath, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._known.add(path)
        self._archive += entry(str(path).lstrip("/"), len(self._known), mode, content, device)


def entry(name: str, inode: int, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    # One member of the archive.
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return b"".join(part + bytes(-len(part) % 4) for part in (header, content))


def libraries(program: Path) -> list[Path]:
    # The files the dynamic linker would load for a program, itself included; none for a static one.
    shown = subprocess.run([tool("ldd"), program], capture_output=True, text=True, check=False)
    if "not found" in shown.stdout:
        raise Missing(f"{program} lacks libraries: {shown.stdout.strip()}")
    return [Path(path) for path in re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", shown.stdout, re.MULTILINE)]
