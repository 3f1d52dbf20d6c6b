# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The 12 messages a GPU back-end sends on the GPU socket: vhost-user-gpu.rst.

The front-end answers the questions among them; nothing is acknowledged. Pixels are passed on as bytes.
"""

import struct
from typing import ClassVar, Self

from vhost.errors import RemoteProtocolError

from .features import GpuProtocolFeature
from .header import Channel
from .message import U64, Empty, Message, Payload, ReplyRule, message, payload
from .terms import Terms

__all__ = (
    "GpuMessage",
    "DisplayInfo",
    "Edid",
    "GpuGetProtocolFeatures",
    "GpuSetProtocolFeatures",
    "GpuGetDisplayInfo",
    "GpuCursorPos",
    "GpuCursorPosHide",
    "GpuCursorUpdate",
    "GpuScanout",
    "GpuUpdate",
    "GpuDmabufScanout",
    "GpuDmabufUpdate",
    "GpuGetEdid",
    "GpuDmabufScanout2",
)


class GpuMessage(Message):
    """A request on the GPU socket."""

    __slots__ = ()
    channel: ClassVar[Channel] = Channel.GPU
    reply: ClassVar[ReplyRule] = ReplyRule.NEVER


@payload("408s")
class DisplayInfo(Payload):
    """A virtio_gpu_resp_display_info, as virtio lays it out."""

    data: bytes


@payload("1056s")
class Edid(Payload):
    """A virtio_gpu_resp_edid, as virtio lays it out."""

    data: bytes


@message(1, "GET_PROTOCOL_FEATURES", reply=U64)
class GpuGetProtocolFeatures(GpuMessage):
    """Asks for the GPU protocol features the front-end offers."""

    def settle_reply(self, value: Payload, terms: Terms) -> None:
        if isinstance(value, U64):
            terms.offered_protocol_features = value.value


@message(2, "SET_PROTOCOL_FEATURES", "Q")
class GpuSetProtocolFeatures(GpuMessage):
    """Acknowledges GPU protocol features."""

    features: int

    def settle(self, terms: Terms) -> None:
        terms.protocol_features = self.features


@message(3, "GET_DISPLAY_INFO", reply=DisplayInfo)
class GpuGetDisplayInfo(GpuMessage):
    """Asks for the layout of the displays."""


@message(4, "CURSOR_POS", "III")
class GpuCursorPos(GpuMessage):
    """Moves the cursor."""

    scanout_id: int
    x: int
    y: int


@message(5, "CURSOR_POS_HIDE", "III")
class GpuCursorPosHide(GpuMessage):
    """Hides the cursor."""

    scanout_id: int
    x: int
    y: int


@message(6, "CURSOR_UPDATE", "IIIII16384s")
class GpuCursorUpdate(GpuMessage):
    """Sets the cursor: 64 x 64 pixels, ARGB."""

    scanout_id: int
    x: int
    y: int
    hot_x: int
    hot_y: int
    pixels: bytes


@message(7, "SCANOUT", "III")
class GpuScanout(GpuMessage):
    """Sets the size of a display; 0 x 0 turns it off."""

    scanout_id: int
    width: int
    height: int


@message(8, "UPDATE", "IIIII")
class GpuUpdate(GpuMessage):
    """Shows a rectangle: width x height pixels, x8r8g8b8."""

    scanout_id: int
    x: int
    y: int
    width: int
    height: int
    pixels: bytes

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        if len(data) < cls.layout.size:
            raise cls.wrong_size(data, f"at least {cls.layout.size}")
        scanout_id, x, y, width, height = cls.layout.unpack_from(data)
        if len(data) - cls.layout.size != width * height * 4:
            raise RemoteProtocolError(
                f"UPDATE of {width} x {height} has {len(data) - cls.layout.size} bytes of pixels"
            )
        return cls(scanout_id, x, y, width, height, data[cls.layout.size :])

    def encode(self, terms: Terms) -> bytes:
        if len(self.pixels) != self.width * self.height * 4:
            raise struct.error(f"{self.width} x {self.height} pixels are not {len(self.pixels)} bytes")
        return self.layout.pack(self.scanout_id, self.x, self.y, self.width, self.height) + self.pixels


@payload("IIIIIIIIIi")
class _DmabufScanout(GpuMessage):
    """A rectangle of a dmabuf, and the layout of the dmabuf."""

    scanout_id: int
    x: int
    y: int
    width: int
    height: int
    fd_width: int
    fd_height: int
    fd_stride: int
    fd_flags: int
    fd_drm_fourcc: int


@message(9, "DMABUF_SCANOUT", "IIIIIIIIIi", fds=(0, 1))
class GpuDmabufScanout(_DmabufScanout):
    """Shows a dmabuf; 0 x 0 without a descriptor turns the display off."""


@message(10, "DMABUF_UPDATE", "IIIII", reply=Empty)
class GpuDmabufUpdate(GpuMessage):
    """A rectangle of the dmabuf has changed; answered when it has been shown."""

    scanout_id: int
    x: int
    y: int
    width: int
    height: int


@message(11, "GET_EDID", "I", reply=Edid, gate=GpuProtocolFeature.EDID)
class GpuGetEdid(GpuMessage):
    """Asks for the EDID of a display."""

    scanout_id: int


@message(12, "DMABUF_SCANOUT2", "IIIIIIIIIiQ", fds=(0, 1), gate=GpuProtocolFeature.DMABUF2)
class GpuDmabufScanout2(_DmabufScanout):
    """DMABUF_SCANOUT with the modifier of the dmabuf's layout."""

    modifier: int
