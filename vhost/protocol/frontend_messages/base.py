# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The base of front-end requests."""

from typing import ClassVar

from vhost.protocol.header import Channel
from vhost.protocol.message import Message

__all__ = ("FrontendMessage",)


class FrontendMessage(Message):
    """A request on the main socket."""

    __slots__ = ()
    channel: ClassVar[Channel] = Channel.FRONTEND
