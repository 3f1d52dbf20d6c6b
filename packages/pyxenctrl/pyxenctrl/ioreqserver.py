# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a device model has asked for: which of a domain's accesses it serves.

The requests themselves are in ioreq.
"""

import ctypes
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from pyxenctrl.handle import Handle
from pyxenctrl.library import failure

if TYPE_CHECKING:
    from pyxenctrl.devicemodel import DeviceModel

__all__ = ("IoreqServer", "IoreqServerInfo")

_U32, _U64 = ctypes.c_uint32, ctypes.c_uint64


@dataclass(frozen=True, slots=True)
class IoreqServerInfo:
    """Where a server's requests are, for a device model that cannot map them as a resource."""

    #: Guest frame of the slots.
    frame: int
    #: Guest frame of the ring of requests that are not waited for, if the server has one.
    buffered_frame: int | None


@final
class IoreqServer(Handle):
    """A server for some of a domain's accesses, until closed. Made by a device model, which it keeps open.

    Its calls raise the device model's OSErrors, and EEXIST for a range that overlaps one it serves already,
    ENOENT for one that it does not serve, or when the server is gone with its domain.
    """

    def __init__(self, model: "DeviceModel", domid: int, number: int, buffered: bool) -> None:
        model._hold()
        super().__init__(number)
        self._model = model
        self._buffered = buffered
        self.domid: Final = domid
        #: The number of this server, which is its resource's.
        self.id: Final = number
        self._name = f"ioreq server {number} of domain {domid}"

    def info(self) -> IoreqServerInfo:
        """Where its requests are in the guest's memory, in frames that the domain's parameters must reserve.

        :raises OSError: ENOMEM: they do not; EPERM: the requests have been mapped as a resource.
        """
        frame, buffered = _U64(), _U64()
        addresses = ctypes.byref(frame), ctypes.byref(buffered)
        self._call("get_ioreq_server_info", *addresses, None, what=f"find the frames of {self._name}")
        return IoreqServerInfo(frame.value, buffered.value if self._buffered else None)

    def buffered_port(self) -> int | None:
        """The domain's event channel port for requests that are not waited for, None if it takes none."""
        port = _U32()
        what = f"find the port of {self._name}"
        self._call("get_ioreq_server_info", None, None, ctypes.byref(port), what=what)
        return port.value if self._buffered else None

    def map_mmio(self, start: int, end: int) -> None:
        """Serve accesses to guest-physical addresses where there is no memory, `end` included."""
        self._range("map_io_range_to", True, start, end)

    def unmap_mmio(self, start: int, end: int) -> None:
        """Serve them no more; they may be a part of a range that was mapped."""
        self._range("unmap_io_range_from", True, start, end)

    def map_port_io(self, start: int, end: int) -> None:
        """Serve accesses to I/O ports, `end` included."""
        self._range("map_io_range_to", False, start, end)

    def unmap_port_io(self, start: int, end: int) -> None:
        """Serve them no more; they may be a part of a range that was mapped."""
        self._range("unmap_io_range_from", False, start, end)

    def map_pci(self, segment: int, bus: int, device: int, function: int) -> None:
        """Serve accesses to a PCI function's configuration space."""
        self._pci("map_pcidev_to", segment, bus, device, function)

    def unmap_pci(self, segment: int, bus: int, device: int, function: int) -> None:
        """Serve them no more."""
        self._pci("unmap_pcidev_from", segment, bus, device, function)

    def enable(self) -> None:
        """Send it requests from now on; until then its page says nothing of event channels either."""
        self._call("set_ioreq_server_state", True, what=f"enable {self._name}")

    def disable(self) -> None:
        """Send it no requests."""
        self._call("set_ioreq_server_state", False, what=f"disable {self._name}")

    def _range(self, what: str, mmio: bool, start: int, end: int) -> None:
        kind = "memory" if mmio else "ports"
        words = f"{what.replace('_', ' ')} {self._name}: {kind} {start:#x} to {end:#x}"
        self._call(f"{what}_ioreq_server", mmio, start, end, what=words)

    def _pci(self, what: str, segment: int, bus: int, device: int, function: int) -> None:
        name = f"{segment:04x}:{bus:02x}:{device:02x}.{function:x}"
        words = f"{what.replace('_', ' ')} {self._name}: PCI function {name}"
        self._call(f"{what}_ioreq_server", segment, bus, device, function, what=words)

    def _call(self, name: str, *arguments: object, what: str) -> None:
        with self._live() as number:
            self._model._call(name, self.domid, number, *arguments, what=what)

    def _close(self, pointer: int) -> None:
        model = self._model
        try:
            failed = model._library.xendevicemodel_destroy_ioreq_server(model._pointer, self.domid, pointer)
            # It may have gone with its domain.
            if failed and ctypes.get_errno() not in (errno.ESRCH, errno.ENOENT):
                raise failure(f"cannot destroy {self._name}")
        finally:
            model._release()
