# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The feature bits that are negotiated, and which of them need one another.

Three sets exist: virtio features, vhost-user protocol features, and the protocol features of the GPU
socket. Bits of a single device type (virtio bits 0-23 and 50 up) are the devices' business.
"""

import enum
from types import MappingProxyType

__all__ = ("VirtioFeature", "ProtocolFeature", "GpuProtocolFeature", "REQUIRES")


class VirtioFeature(enum.IntFlag):
    """Feature bits of virtio itself and of vhost; unknown bits are kept."""

    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    ANY_LAYOUT = 1 << 27
    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40


class ProtocolFeature(enum.IntFlag):
    """vhost-user protocol features, bits 0-23 under the names of the specification."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM = 1 << 22
    GET_VRING_BASE_SKIP_DRAIN = 1 << 23


class GpuProtocolFeature(enum.IntFlag):
    """Protocol features of the GPU socket."""

    EDID = 1 << 0
    DMABUF2 = 1 << 1


_F = ProtocolFeature

#: Protocol features that may only be negotiated together with others.
REQUIRES = MappingProxyType(
    {
        _F.BACKEND_SEND_FD: _F.BACKEND_REQ,
        _F.INBAND_NOTIFICATIONS: _F.BACKEND_REQ | _F.REPLY_ACK,
        _F.GET_VRING_BASE_SKIP_DRAIN: _F.INFLIGHT_SHMFD | _F.GET_VRING_BASE_INFLIGHT,
    }
)
