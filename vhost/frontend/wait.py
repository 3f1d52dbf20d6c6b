# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs exchanges in blocking code."""

import select
import time
from typing import TypeVar

from .exchange import Exchange, Step

__all__ = ("wait",)

_T = TypeVar("_T")


def wait(exchange: Exchange[_T], timeout: float | None) -> _T:
    """Run `exchange` to its end.

    What goes wrong in a step is raised inside the exchange, which may say more about it.

    :param timeout: seconds for all of it, None for no limit.
    :raises TimeoutError: it took longer; the message says what was waited for.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        step = next(exchange)
        while True:
            try:
                while not step.attempt():
                    _block(step, deadline, timeout)
            except BaseException as error:
                step = exchange.throw(error)
                continue
            step = next(exchange)
            # A peer that always has something to say must not get past the deadline either.
            if deadline is not None and time.monotonic() > deadline:
                step = exchange.throw(step.late(timeout))
    except StopIteration as end:
        value: _T = end.value
        return value
    finally:
        exchange.close()


def _block(step: Step, deadline: float | None, timeout: float | None) -> None:
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left < 0:
        raise step.late(timeout)
    if step.again is not None:
        left = step.again if left is None else min(step.again, left)
    poller = select.poll()
    for fd in step.reads:
        poller.register(fd, select.POLLIN)
    for fd in step.writes:
        poller.register(fd, select.POLLOUT)
    # poll() counts whole milliseconds; one more makes sure that the deadline has passed.
    poller.poll(None if left is None else left * 1000 + 1)
