# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Debian packages by name and suite, downloaded and unpacked, never installed.

An apt state of its own lies in the cache folder, so the machine's own apt is neither read for packages nor
changed, and a plain user can use it. The mirror is the one the machine already uses: its URI is asked of apt,
and the suites the lab wants are taken from the same place. Of the machine's apt settings only those for
downloading (proxies, certificates, retries) are taken over; its hooks are not.

Packages for machines of another architecture come from a state of their own, which believes to be on one.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab import cache
from tests.lab.prerequisites import Missing, tool

__all__ = ("closure", "dependency", "unpacked")

FOREIGN_SUITES = ("bookworm",)
SUITES = ("bookworm", "bookworm-backports", "trixie", "sid")
MERGED = ("bin", "sbin", "lib", "lib64")  # folders of / that live in /usr
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def unpacked(packages: Sequence[str], suite: str, architecture: str = "") -> Path:
    """A folder with the files of ``packages`` of ``suite``, as if it were a root folder.

    :param architecture: Debian's name of the machine that they are for; empty: this machine's.
    :raises Missing: this machine's apt cannot provide them.
    """

    def make(place: Path) -> None:
        debs = place / "debs"
        debs.mkdir()
        names = [f"{package}/{suite}" for package in packages]
        run_apt("apt-get", "download", *names, cwd=debs, architecture=architecture)
        for deb in debs.iterdir():
            subprocess.run([tool("dpkg-deb"), "-x", deb, place], check=True)
            deb.unlink()
        debs.rmdir()

    return cache.kept(f"{packages[0]}-{mark((*packages, *architecture.split()), suite)}", make)


def closure(packages: Sequence[str], suite: str, finish: Callable[[Path], None] | None = None) -> Path:
    """A root folder with ``packages`` and all that they depend on, all of ``suite``.

    No maintainer script has run: what those make (accounts, alternatives, caches) is absent.

    :param finish: is called once with the new folder and may add to it.
    :raises Missing: this machine's apt cannot provide them.
    """

    def make(place: Path) -> None:
        debs = place / "debs"
        (debs / "partial").mkdir(parents=True)
        wish = ("install", "--yes", "--download-only", "--no-install-recommends")
        run_apt("apt-get", "-o", f"Dir::Cache::archives={debs}", *wish, *packages, cwd=debs, only=suite)
        for name in MERGED:
            (place / "usr" / name).mkdir(parents=True)
            (place / name).symlink_to(f"usr/{name}")
        for deb in sorted(debs.glob("*.deb")):
            unpack_merged(deb, place)
        shutil.rmtree(debs)
        if finish:
            finish(place)

    return cache.kept(f"{packages[0]}-closure-{mark(packages, suite)}", make)


def dependency(package: str, suite: str, prefix: str, architecture: str = "") -> str:
    """The first dependency of ``package`` whose name starts with ``prefix``: what a meta-package stands for.

    :param architecture: as for :func:`unpacked`.
    :raises Missing: this machine's apt does not know the package in that suite, or it has no such dependency.
    """
    show = ("apt-cache", "show", f"{package}/{suite}")
    record = run_apt(*show, cwd=cache.folder(), architecture=architecture)
    for line in record.splitlines():
        if line.startswith("Depends: "):
            for name in line.removeprefix("Depends: ").split(","):
                if name.strip().startswith(prefix):
                    return name.split()[0]
    raise Missing(f"{package} of {suite} depends on no {prefix}...; apt says: {record.strip()!r}")


def mark(packages: Sequence[str], suite: str) -> str:
    # What tells two choices of packages apart, in the name of a folder.
    return hashlib.sha256("\n".join((suite, *packages)).encode()).hexdigest()[:12]


def unpack_merged(deb: Path, place: Path) -> None:
    # Unlike "dpkg-deb -x", through the links that stand for /bin, /lib and so on in `place`.
    into = [tool("tar"), "-x", "--keep-directory-symlink", "-C", place]
    with subprocess.Popen([tool("dpkg-deb"), "--fsys-tarfile", deb], stdout=subprocess.PIPE) as source:
        subprocess.run(into, stdin=source.stdout, check=True)
    if source.returncode != 0:
        raise subprocess.CalledProcessError(source.returncode, source.args)


def run_apt(program: str, *arguments: str, cwd: Path, only: str | None = None, architecture: str = "") -> str:
    # The standard output of one command of apt on the lab's own state; it may see all suites, or only one.
    # Package lists grow old (a mirror drops what they name), so a failure is final only with new ones.
    state = cache.folder() / f"apt-{architecture}".rstrip("-")
    with cache.locked(state):
        new = not is_made(state)
        if new:
            make_state(state, architecture)
        if only:
            arguments = ("-o", f"Dir::Etc::sourcelist={one_suite(state, only)}", *arguments)
        done = call_apt(state, program, *arguments, cwd=cwd)
        if done.returncode != 0 and not new:
            call_apt(state, "apt-get", "update", cwd=cwd)
            done = call_apt(state, program, *arguments, cwd=cwd)
    if done.returncode != 0:
        raise Missing(f"{program} {' '.join(arguments)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def one_suite(state: Path, suite: str) -> Path:
    # A list of sources with this suite alone.
    known = (state / "sources.list").read_text().splitlines(keepends=True)
    sources = state / f"{suite}.list"
    sources.write_text("".join(line for line in known if f" {suite} " in line))
    return sources


def call_apt(state: Path, program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, APT_CONFIG=str(state / "apt.conf"), LC_ALL="C.UTF-8")
    command = [tool(program), "-q", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def is_made(state: Path) -> bool:
    # Whether the state is there, with all suites: one made by an older lab has fewer.
    if not (state / "apt.conf").exists():
        return False
    known = (state / "sources.list").read_text()
    return all(f" {suite} " in known for suite in SUITES)


def make_state(state: Path, architecture: str) -> None:
    for name in ("lists/partial", "archives/partial", "empty"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    uri, proof = machine_mirror(), f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    suites = FOREIGN_SUITES if architecture else SUITES
    (state / "sources.list").write_text("".join(f"deb {proof}{uri} {suite} main\n" for suite in suites))
    settings = configuration(state) + download_settings()
    if architecture:
        settings += f'APT::Architecture "{architecture}";\nAPT::Architectures {{ "{architecture}"; }};\n'
    (state / "apt.conf").write_text(settings)
    # A mirror may lack one of the suites; whether the others suffice shows when a package is wanted.
    updated = call_apt(state, "apt-get", "update", cwd=state)
    if not any((state / "lists").glob("*_Packages*")):
        raise Missing(f"apt-get update brought no package lists from {uri}: {updated.stderr.strip()}")


def configuration(place: Path) -> str:
    # apt's settings for a state in `place`. As root, apt would download as a user who may not write there.
    return f"""\
Dir::State "{place}";
Dir::State::status "{place}/status";
Dir::State::lists "{place}/lists";
Dir::Cache "{place}";
Dir::Cache::archives "{place}/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::main "{place}/empty/none";
Dir::Etc::parts "{place}/empty";
Dir::Etc::sourcelist "{place}/sources.list";
Dir::Etc::sourceparts "{place}/empty";
Dir::Etc::preferences "{place}/empty/none";
Dir::Etc::preferencesparts "{place}/empty";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
"""


def download_settings() -> str:
    # How this machine's apt reaches the network, in apt's own syntax.
    dump = subprocess.run([tool("apt-config"), "dump"], check=True, capture_output=True, text=True).stdout
    mine = ("Acquire::IndexTargets", "Acquire::Languages", "Acquire::GzipIndexes")
    lines = [line for line in dump.splitlines() if line.startswith("Acquire::") and not line.startswith(mine)]
    return "\n".join(lines) + "\n"


def machine_mirror() -> str:
    # Where this machine's apt gets Debian's main archive from (security updates come from another).
    command = [tool("apt-get"), "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]
    targets = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in targets.splitlines():
        uri, release, component = line.split()[:3]
        if release in (*SUITES, "forky", "sid", "stable", "testing", "unstable") and component == "main":
            return uri
    raise Missing("apt knows no main archive of Debian on this machine: there is nowhere to download from")
