# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Libraries that only note what they are asked for."""

import ctypes
import platform
from collections.abc import Callable

import pytest


class Recorder:
    """A library whose functions note their arguments and succeed, or do what we have for them."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.functions: dict[str, Callable[..., int]] = {}

    def fails(self, name: str, code: int) -> None:
        """Let a function fail with an errno from now on."""

        def function(*_: object) -> int:
            ctypes.set_errno(code)
            return -1

        self.functions[name] = function

    def names(self) -> list[object]:
        """The functions that were called, and forgets them."""
        calls, self.calls = self.calls, []
        return [name for name, *_ in calls]

    def __getattr__(self, name: str) -> Callable[..., int]:
        def function(*arguments: object) -> int:
            self.calls.append((name, *arguments))
            return self.functions.get(name, lambda *_: 0)(*arguments)

        return function


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A library that notes what it is asked for, as on x86-64; its handles are 1."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    recorder = Recorder()
    for name in ("xc_interface_open", "xendevicemodel_open"):
        recorder.functions[name] = lambda *_: 1
    return recorder
