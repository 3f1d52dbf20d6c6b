# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The exceptions of this package, one small tree.

::

    VhostError
    ├── ProtocolError
    │   ├── LocalProtocolError     this side misused the protocol core
    │   ├── RemoteProtocolError    the peer broke the protocol
    │   └── RefusedError           the peer understood a request and answered that it failed
    ├── GuestMemoryError           a memory table that cannot be used
    │   └── UnmappedError          an address outside guest memory (also a LookupError)
    ├── VirtqueueError             the driver broke the rules of its ring
    └── DeviceError                a device cannot do what it was set up for

What the operating system refuses stays an ``OSError`` with its errno.
"""

__all__ = (
    "VhostError",
    "ProtocolError",
    "LocalProtocolError",
    "RemoteProtocolError",
    "RefusedError",
    "GuestMemoryError",
    "UnmappedError",
    "VirtqueueError",
    "DeviceError",
)


class VhostError(Exception):
    """Base of all errors of this package."""


class ProtocolError(VhostError):
    """Something is wrong with a message or with the moment it was sent."""


class LocalProtocolError(ProtocolError):
    """This side asked the protocol core for something the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol does not allow."""


class RefusedError(ProtocolError):
    """The peer answered a well-formed request with a failure.

    :param request: name of the request, as in the specification.
    :param code: the non-zero value of the answer.
    """

    def __init__(self, request: str, code: int) -> None:
        super().__init__(f"the peer refused {request}: it answered {code:#x} instead of 0; see its log")
        self.request = request
        self.code = code


class GuestMemoryError(VhostError):
    """A memory table, or a region in it, that cannot be used."""


class UnmappedError(GuestMemoryError, LookupError):
    """An address range that is not, or not wholly, in guest memory."""


class VirtqueueError(VhostError):
    """The driver broke the rules of its virtqueue; the ring is unusable until it is set up anew."""


class DeviceError(VhostError):
    """A device cannot be set up, or cannot serve a request, for a reason of its own."""
