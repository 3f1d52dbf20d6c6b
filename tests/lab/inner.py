# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A run of pytest within a test, to see what the lab's plugins make of it."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ("CHECKOUT", "inner_pytest")

CHECKOUT = Path(__file__).parents[2]

# The checkout is last in the path: what is installed comes first.
PROGRAM = (
    f"import sys; sys.path.append({str(CHECKOUT)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
)


def inner_pytest(*arguments: str | os.PathLike[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest to its end, in the checkout.

    :param variables: more for its environment.
    """
    command = (sys.executable, "-c", PROGRAM, "-p", "no:cacheprovider", "--import-mode=append", *arguments)
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
