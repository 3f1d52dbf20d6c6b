# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libxendevicemodel: being the device model of an HVM domain, or one of several (xendevicemodel.h).

A device model serves the domain's accesses to ranges of memory, I/O ports and PCI functions that it has asked
for through an ioreq server, and raises interrupts. The requests themselves are in ioreq.
"""

import ctypes
from functools import cache
from typing import Final, final

from pyxenctrl.handle import Handle
from pyxenctrl.ioreqserver import IoreqServer
from pyxenctrl.library import Prototype, declare, failure

__all__ = ("SONAME", "DeviceModel", "library")

SONAME: Final = "libxendevicemodel.so.1"

_U8, _U16, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
# HVM_IOREQSRV_BUFIOREQ_*. With the third, the hypervisor moves our read pointer too, and must find it changed
# by an atomic addition, which Python does not have.
_BUFFER_OFF, _BUFFER_LEGACY = 0, 1


_STATUS, _HANDLE, _DOMID, _SERVER = ctypes.c_int, ctypes.c_void_p, _U16, _U16
_NUMBER, _FRAME, _DEVICE = ctypes.c_uint, ctypes.POINTER(_U64), (_U16, _U8, _U8, _U8)
FUNCTIONS: Final[dict[str, Prototype]] = {
    "open": (_HANDLE, (ctypes.c_void_p, _NUMBER)),
    "close": (_STATUS, (_HANDLE,)),
    "restrict": (_STATUS, (_HANDLE, _DOMID)),
    "create_ioreq_server": (_STATUS, (_HANDLE, _DOMID, ctypes.c_int, ctypes.POINTER(_SERVER))),
    "get_ioreq_server_info": (_STATUS, (_HANDLE, _DOMID, _SERVER, _FRAME, _FRAME, ctypes.POINTER(_U32))),
    "map_io_range_to_ioreq_server": (_STATUS, (_HANDLE, _DOMID, _SERVER, ctypes.c_int, _U64, _U64)),
    "unmap_io_range_from_ioreq_server": (_STATUS, (_HANDLE, _DOMID, _SERVER, ctypes.c_int, _U64, _U64)),
    "map_pcidev_to_ioreq_server": (_STATUS, (_HANDLE, _DOMID, _SERVER, *_DEVICE)),
    "unmap_pcidev_from_ioreq_server": (_STATUS, (_HANDLE, _DOMID, _SERVER, *_DEVICE)),
    "set_ioreq_server_state": (_STATUS, (_HANDLE, _DOMID, _SERVER, ctypes.c_int)),
    "destroy_ioreq_server": (_STATUS, (_HANDLE, _DOMID, _SERVER)),
    "set_isa_irq_level": (_STATUS, (_HANDLE, _DOMID, _U8, _NUMBER)),
    "set_irq_level": (_STATUS, (_HANDLE, _DOMID, _NUMBER, _NUMBER)),
    "set_pci_intx_level": (_STATUS, (_HANDLE, _DOMID, *_DEVICE, _NUMBER)),
    "set_pci_link_route": (_STATUS, (_HANDLE, _DOMID, _U8, _U8)),
    "inject_msi": (_STATUS, (_HANDLE, _DOMID, _U64, _U32)),
    "modified_memory": (_STATUS, (_HANDLE, _DOMID, _U64, _U32)),
    "track_dirty_vram": (_STATUS, (_HANDLE, _DOMID, _U64, _U32, ctypes.POINTER(ctypes.c_ulong))),
    "nr_vcpus": (_STATUS, (_HANDLE, _DOMID, ctypes.POINTER(_NUMBER))),
}


@cache
def library() -> ctypes.CDLL:
    """The library, with its functions declared.

    :raises OSError: it is not installed, or too old.
    """
    return declare(SONAME, "xendevicemodel_", FUNCTIONS)


@final
class DeviceModel(Handle):
    """A handle for serving domains' devices.

    A call that the hypervisor refuses raises OSError: ESRCH: no such domain; EINVAL: it is not an HVM domain,
    or an argument is out of range; EPERM: the handle is restricted to another domain.

    Interrupt lines are those of a PC, for a domain that was created with its interrupt controllers. Xen 4.17
    does not check that, and hangs some calls later if it was not.

    :raises OSError: the library is not installed, or ``/dev/xen/privcmd`` cannot be opened.
    """

    def __init__(self) -> None:
        self._library = library()
        pointer = self._library.xendevicemodel_open(None, 0)
        if not pointer:
            raise failure("cannot open /dev/xen/privcmd (is this a privileged Xen domain?)")
        super().__init__(pointer)

    def create_ioreq_server(self, domid: int, *, buffered: bool = False) -> IoreqServer:
        """A server for a domain's accesses, disabled and without ranges.

        :param buffered: have a second page, for writes that the domain does not wait for.
        """
        number = _U16()
        mode = _BUFFER_LEGACY if buffered else _BUFFER_OFF
        what = f"create an ioreq server for domain {domid}"
        self._call("create_ioreq_server", domid, mode, ctypes.byref(number), what=what)
        return IoreqServer(self, domid, number.value, buffered)

    def set_isa_irq_level(self, domid: int, irq: int, level: bool) -> None:
        """Assert an ISA interrupt line, 0 to 15, or release it."""
        what = f"set ISA interrupt {irq} of domain {domid}"
        self._call("set_isa_irq_level", domid, irq, level, what=what)

    def set_irq_level(self, domid: int, irq: int, level: bool) -> None:
        """Assert a shared peripheral interrupt, or release it (Arm; EOPNOTSUPP on x86)."""
        self._call("set_irq_level", domid, irq, level, what=f"set interrupt {irq} of domain {domid}")

    def set_pci_intx_level(
        self, domid: int, segment: int, bus: int, device: int, pin: int, level: bool
    ) -> None:
        """Assert an interrupt pin of a PCI device, 0 (INTA) to 3 (INTD), or release it."""
        what = f"set pin {pin} of PCI device {segment:04x}:{bus:02x}:{device:02x} of domain {domid}"
        self._call("set_pci_intx_level", domid, segment, bus, device, pin, level, what=what)

    def set_pci_link_route(self, domid: int, link: int, irq: int) -> None:
        """Route a PCI interrupt link, 0 to 3, to an ISA interrupt; 0 for nowhere."""
        what = f"route link {link} of domain {domid} to interrupt {irq}"
        self._call("set_pci_link_route", domid, link, irq, what=what)

    def inject_msi(self, domid: int, address: int, data: int) -> None:
        """Send a message-signalled interrupt."""
        what = f"send the MSI {data:#x} to {address:#x} of domain {domid}"
        self._call("inject_msi", domid, address, data, what=what)

    def modified_memory(self, domid: int, first: int, count: int) -> None:
        """Say that frames of a domain have been written; of no effect unless it is being migrated."""
        what = f"mark {count} frames of domain {domid} from {first:#x} on as written"
        self._call("modified_memory", domid, first, count, what=what)

    def track_dirty_vram(self, domid: int, first: int, count: int) -> bytes:
        """Which of these frames were written since the last call: a bitmap, the first frame in bit 0.

        The first call for a range begins to track it and reports all of it.

        :param count: frames; 0 ends tracking.
        """
        bitmap = (ctypes.c_ulong * -(-count // 64))()
        what = f"track writes to {count} frames of domain {domid} from {first:#x} on"
        self._call("track_dirty_vram", domid, first, count, bitmap, what=what)
        return bytes(bitmap)[: -(-count // 8)]

    def nr_vcpus(self, domid: int) -> int:
        """How many vCPUs a domain may have."""
        count = ctypes.c_uint()
        self._call("nr_vcpus", domid, ctypes.byref(count), what=f"count the vCPUs of domain {domid}")
        return count.value

    def restrict(self, domid: int) -> None:
        """Let this handle serve one domain only from now on, for ever."""
        self._call("restrict", domid, what=f"restrict a device model to domain {domid}")

    def _call(self, name: str, *arguments: object, what: str) -> None:
        with self._live() as handle:
            if getattr(self._library, f"xendevicemodel_{name}")(handle, *arguments):
                raise failure(f"cannot {what}")

    def _close(self, pointer: int) -> None:
        if self._library.xendevicemodel_close(pointer):
            raise failure("cannot close the device model handle")
