# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""``python -m vhost``: the program ``vhost``."""

import sys

from vhost.cli import main

sys.exit(main())
