# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The server of the back-end's tests, here with bad company."""

from tests.backend.conftest import server

__all__ = ("server",)
