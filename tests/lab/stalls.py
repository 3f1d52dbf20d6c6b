# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A plugin of pytest: a test whose guest was lost to a stall of the emulator runs once more, with a new boot.

Only :class:`tests.lab.guest.Stalled` does that. Guests and daemons that tests share are started anew for it,
and the summary names the test.
"""

import pytest
from _pytest.runner import runtestprotocol  # what plugins use that repeat tests

from tests.lab.guest import Stalled

HERE = pytest.StashKey[bool]()
REPEATED = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo and isinstance(call.excinfo.value, Stalled):
        item.stash[HERE] = True


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if item.stash.get(HERE, False):
        item.config.stash.setdefault(REPEATED, []).append(item.nodeid)
        state = item.session._setupstate
        ended = pytest.CallInfo.from_call(lambda: state.teardown_exact(None), when="teardown")
        report = item.ihook.pytest_runtest_makereport(item=item, call=ended)
        reports = [*[report] * report.failed, *runtestprotocol(item, nextitem=nextitem, log=False)]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for test in config.stash.get(REPEATED, []):
        terminalreporter.write_line(
            f"lab: the emulator stalled in {test}, which was run again from the boot on"
        )
