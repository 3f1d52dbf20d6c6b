# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Daemons of the installed package in the control domain, started and ended as a service manager does it."""

import contextlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.lab.daemons import Daemon, ours

__all__ = ("Daemon", "daemon")


@contextlib.contextmanager
def daemon(script: str, *options: str | os.PathLike[str], work: Path) -> Iterator[Daemon]:
    """A daemon that listens. It must leave in order and without complaints, unless the block has failed.

    :param script: its console script, ``vhost-rng`` or ``vhost-blk``.
    :param work: folder for its socket and its log; the path must be short.
    """
    # Not where the interpreter is: Debian's has its own scripts elsewhere than those of pip.
    path = Path(sysconfig.get_path("scripts"), script)
    with ours(str(path), *options, work=work, logs=work, name=script) as running:
        try:
            yield running
        except BaseException as error:
            error.add_note(f"{script}:\n{running.tail()}")
            raise
        running.finish()
