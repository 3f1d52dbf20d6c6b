# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the lab's tests share: a guest for each test module, and what ``VHOST_LAB`` decides."""

import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.lab import machine as machines
from tests.lab import stalls
from tests.lab.kernel import Kernel, debian_kernel
from tests.lab.machine import Machine
from tests.lab.peers import Recorder
from tests.lab.prerequisites import Missing, Policy, lacking, policy
from tests.lab.root import write_root
from tests.lab.uml import SUITES, Uml

SECONDS = pytest.StashKey[list[tuple[str, float]]]()


def pytest_configure(config: pytest.Config) -> None:
    if recorder := Recorder.wanted():
        config.pluginmanager.register(recorder)
    config.pluginmanager.register(stalls)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if policy() is Policy.NEVER:
        reason = "VHOST_LAB=0"
    elif "lab" not in config.option.markexpr:
        reason = "the lab runs only when it is asked for: pytest -m lab"
    else:
        return
    for item in items:
        if item.get_closest_marker("lab"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    try:
        return (yield)
    except Missing as missing:
        reason = str(missing)
    lacking(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    try:
        return (yield)
    except Missing as missing:
        reason = str(missing)
    lacking(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and isinstance(machine, Machine):
        for daemon in machine.daemons:
            report.sections.append((f"end of {daemon.log.name}", daemon.tail(50)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, seconds in config.stash.get(SECONDS, []):
        terminalreporter.write_line(f"lab: the guest of {name} ran {seconds:.1f} s")


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """The guest's kernel."""
    return debian_kernel()


@pytest.fixture(scope="session")
def root(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's root."""
    target = tmp_path_factory.mktemp("root") / "root.cpio"
    write_root(kernel, target)
    return target


@pytest.fixture(scope="session", params=SUITES)
def uml(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Uml:
    """A user-mode Linux of each suite."""
    return Uml.made(request.param, tmp_path_factory.mktemp("uml") / "root.cpio")


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A folder for sockets and images; its path is short, as the name of a socket must be."""
    with tempfile.TemporaryDirectory(prefix="vhost-lab-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def logs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for logs, which stay until pytest clears its old folders."""
    return tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])


@pytest.fixture(scope="module")
def machine(
    kernel: Kernel, root: Path, work: Path, logs: Path, request: pytest.FixtureRequest
) -> Iterator[Machine]:
    """A guest with our daemons behind it. In the end they must leave in order, without complaints."""
    with machines.running(kernel.image, root, work=work, logs=logs) as machine:
        yield machine
        seconds = request.config.stash.setdefault(SECONDS, [])
        seconds.append((request.module.__name__.rpartition(".")[2], machine.guest.seconds))
        if not machine.guest.lost:
            machine.finish()
