# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A front-end of rust-vmm: the program in the folder ``rust``, built on Debian's package of the crate vhost.

Compiler and crates lie in the cache, and so does the program once it is built; nothing is installed. This
machine's C compiler links it, so it runs with this machine's libraries.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab import archive, cache
from tests.lab.peers import Peer
from tests.lab.prerequisites import tool
from tests.lab.userland import LIBRARIES, Userland

__all__ = ("RUST_VMM", "front_end", "run")

SUITE = "trixie"
PACKAGES = ("librust-vhost-dev", "cargo")
CRATES = "usr/share/cargo/registry"
SOURCE = Path(__file__).with_name("rust")
SECONDS = 30

CARGO = """\
[source.crates-io]
replace-with = "debian"
[source.debian]
directory = "{crates}"
"""


def toolchain() -> Userland:
    """rustc, cargo and the crates.

    :raises Missing: this machine's apt cannot provide them.
    """
    return Userland(archive.closure(PACKAGES, SUITE, without_the_rest))


def without_the_rest(root: Path) -> None:
    # Both packages depend on a C compiler, Perl and more: half of the folder.
    for folder in ("usr/libexec", "usr/lib/gcc", "usr/include", *map(str, (root / "usr/share").iterdir())):
        if not folder.endswith("/cargo"):
            shutil.rmtree(root / folder, ignore_errors=True)
    for pattern in (f"{LIBRARIES}/*.a", f"{LIBRARIES}/lib*san.so*", "usr/bin/x86_64-linux-gnu-*"):
        for file in root.glob(pattern):
            file.unlink()


def front_end() -> Path:
    """The program, built if it is not in the cache.

    :raises Missing: a part of what builds it is not on this machine, and cannot be had.
    """
    tools = toolchain()
    sources = sorted(path for path in SOURCE.rglob("*") if path.is_file())
    mark = hashlib.sha256(b"\0".join((tools.root.name.encode(), *(path.read_bytes() for path in sources))))

    def make(place: Path) -> None:
        build(tools, place / "build")
        shutil.move(place / "build/target/release/front-end", place / "front-end")
        shutil.rmtree(place / "build")

    return cache.kept(f"rust-front-end-{mark.hexdigest()[:12]}", make) / "front-end"


def build(tools: Userland, folder: Path) -> None:
    shutil.copytree(SOURCE, folder)
    (folder / "config.toml").write_text(CARGO.format(crates=tools.root / CRATES))
    compiler = folder / "rustc"
    command = " ".join(map(str, tools.command("usr/bin/rustc", "--sysroot", tools.root / "usr")))
    compiler.write_text(f'#!/bin/sh\nexec {command} -C linker={tool("cc")} "$@"\n')
    compiler.chmod(0o755)
    argv = tools.command("usr/bin/cargo", "--config", "config.toml", "build", "--release", "--offline")
    environment = {**os.environ, "RUSTC": str(compiler), "CARGO_HOME": str(folder / "home")}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(
    socket: Path, rings: int, requests: Sequence[tuple[int, bytes, int]], *, features: int, answers: int
) -> list[tuple[int, bytes]]:
    """Runs the program, which must end in order.

    :param requests: ring, bytes for the device to read, and how many it may write.
    :param answers: so many it waits for.
    :returns: ring of each, and what the device wrote.
    """
    words = [f"{ring}:{data.hex()}:{room}" for ring, data, room in requests]
    argv = [front_end(), socket, f"{features:x}", str(rings), str(answers), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    pairs = (line.split(":") for line in done.stdout.splitlines())
    return [(int(ring), bytes.fromhex(data)) for ring, data in pairs]


def version() -> str:
    # Of the crate, as its folder is called.
    (crate,) = (
        path.name for path in (toolchain().root / CRATES).iterdir() if re.match(r"vhost-\d", path.name)
    )
    return crate.removeprefix("vhost-")


RUST_VMM = Peer("rust-vmm vhost", version)
