# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Trying again what fails for the moment only, but not for ever."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ("TRIES", "retry")

#: Tries at mapping what is paged out or busy for the moment; the waits between them double, 255 ms in all.
TRIES: Final = 9
FIRST_WAIT: Final = 0.001

_Made = TypeVar("_Made")


def retry(call: Callable[[], _Made], code: int) -> _Made:
    """The result of a call, repeated while it raises an OSError with this errno, at most ``TRIES`` times.

    :raises OSError: what the last try raised.
    """
    wait = FIRST_WAIT
    for _ in range(TRIES - 1):
        try:
            return call()
        except OSError as error:
            if error.errno != code:
                raise
        time.sleep(wait)
        wait *= 2
    return call()
