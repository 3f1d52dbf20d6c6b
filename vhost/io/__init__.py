# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What both edges, the backend and the frontend, need to move bytes and file descriptors."""

from .listener import Listener
from .sockets import close_fds, recv_fds, send_all, send_fds, wait
from .stream import Standing, Stream

__all__ = ("Listener", "Standing", "Stream", "recv_fds", "send_fds", "send_all", "wait", "close_fds")
