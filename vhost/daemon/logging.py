# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Log lines of the daemons: to stderr, with levels from ``-v``, ``-q`` and ``VHOST_LOG``.

``VHOST_LOG`` is a comma-separated list of ``LOGGER=LEVEL``, or ``LEVEL`` for all of this package:
``VHOST_LOG=warning,vhost.protocol=debug``. It wins over the options.
"""

import logging
import os
import sys

__all__ = ("configure",)

_PACKAGE = "vhost"
_LEVELS = {
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}


def configure(prog: str, verbosity: int) -> None:
    """Set up logging for this process.

    :param prog: name that begins each line.
    :param verbosity: 0 for what an operator wants to know, more for debugging, negative for less.
    :raises ValueError: ``VHOST_LOG`` cannot be read.
    """
    level = min(max(logging.INFO - 10 * verbosity, logging.DEBUG), logging.ERROR)
    levels = {_PACKAGE: level, **_parse(os.environ.get("VHOST_LOG", ""))}
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)
    handler = logging.StreamHandler()
    handler.setFormatter(_Journal() if _to_journal() else _Plain(prog))
    logging.getLogger().addHandler(handler)


def _parse(text: str) -> dict[str, int]:
    levels = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, level = item.rpartition("=")
        if level.lower() not in _LEVELS:
            raise ValueError(
                f"VHOST_LOG: {item!r} is neither LEVEL nor LOGGER=LEVEL; levels: {', '.join(_LEVELS)}"
            )
        levels[name or _PACKAGE] = _LEVELS[level.lower()]
    return levels


def _to_journal() -> bool:
    # systemd names the journal's stream by device and inode; stderr may have been redirected since.
    status = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Plain(logging.Formatter):
    def __init__(self, prog: str) -> None:
        super().__init__()
        self._prog = prog

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"{self._prog}: {level}{super().format(record)}"


class _Journal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # Priorities of syslog; the journal takes each line as a message of its own.
        if record.levelno >= logging.ERROR:
            priority = 3
        elif record.levelno >= logging.WARNING:
            priority = 4
        else:
            priority = 6 if record.levelno >= logging.INFO else 7
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())
