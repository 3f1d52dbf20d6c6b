# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libxenevtchn: event channels, the interrupts between domains (xenevtchn.h).

An event that arrives masks its port until it is unmasked: wait until ``fileno()`` is readable, take the port
with ``pending()``, ``unmask()`` it, then look what there is to do.
"""

import ctypes
from functools import cache
from typing import Final, final

from pyxenctrl.handle import Handle
from pyxenctrl.library import Prototype, declare, failure

__all__ = ("SONAME", "FUNCTIONS", "EventChannels", "library")

SONAME: Final = "libxenevtchn.so.1"

_HANDLE, _STATUS = ctypes.c_void_p, ctypes.c_int
_PORT, _PORT_OR_ERROR, _DOMID = ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32

#: What is called, by name without ``xenevtchn_``.
FUNCTIONS: Final[dict[str, Prototype]] = {
    "open": (_HANDLE, (ctypes.c_void_p, ctypes.c_uint)),
    "close": (_STATUS, (_HANDLE,)),
    "fd": (ctypes.c_int, (_HANDLE,)),
    "notify": (_STATUS, (_HANDLE, _PORT)),
    "bind_unbound_port": (_PORT_OR_ERROR, (_HANDLE, _DOMID)),
    "bind_interdomain": (_PORT_OR_ERROR, (_HANDLE, _DOMID, _PORT)),
    "bind_virq": (_PORT_OR_ERROR, (_HANDLE, ctypes.c_uint)),
    "unbind": (_STATUS, (_HANDLE, _PORT)),
    "pending": (_PORT_OR_ERROR, (_HANDLE,)),
    "unmask": (_STATUS, (_HANDLE, _PORT)),
    "restrict": (_STATUS, (_HANDLE, ctypes.c_uint16)),
}


@cache
def library() -> ctypes.CDLL:
    """The library, with its functions declared.

    :raises OSError: it is not installed, or too old.
    """
    return declare(SONAME, "xenevtchn_", FUNCTIONS)


@final
class EventChannels(Handle):
    """A set of ports of this domain; they are closed with it.

    :raises OSError: the library is not installed, or ``/dev/xen/evtchn`` cannot be opened.
    """

    def __init__(self) -> None:
        self._library = library()
        pointer = self._library.xenevtchn_open(None, 0)
        if not pointer:
            raise failure("cannot open /dev/xen/evtchn (is this Xen, and is the module xen-evtchn loaded?)")
        super().__init__(pointer)

    def fileno(self) -> int:
        """The descriptor that is readable when an event is pending; only wait on it."""
        with self._live() as handle:
            return self._result(self._library.xenevtchn_fd(handle), "tell the descriptor")

    def bind_unbound_port(self, domid: int) -> int:
        """A new port that a domain may bind to one of its own.

        :raises OSError: ESRCH: no such domain; ENOSPC: no more ports.
        """
        with self._live() as handle:
            port = self._library.xenevtchn_bind_unbound_port(handle, domid)
            return self._result(port, f"make a port for domain {domid}")

    def bind_interdomain(self, domid: int, remote_port: int) -> int:
        """A new port bound to a port that a domain made for us. It is pending at once.

        :raises OSError: ESRCH: no such domain; EINVAL: it has no such port for us.
        """
        with self._live() as handle:
            port = self._library.xenevtchn_bind_interdomain(handle, domid, remote_port)
            return self._result(port, f"bind to port {remote_port} of domain {domid}")

    def bind_virq(self, virq: int) -> int:
        """A new port that receives a virtual interrupt (``VIRQ_*`` of public/xen.h).

        :raises OSError: EINVAL: no such interrupt; EEXIST: it is bound elsewhere.
        """
        with self._live() as handle:
            return self._result(self._library.xenevtchn_bind_virq(handle, virq), f"bind VIRQ {virq}")

    def unbind(self, port: int) -> None:
        """Close a port.

        :raises OSError: ENOTCONN: it is none of ours.
        """
        with self._live() as handle:
            self._result(self._library.xenevtchn_unbind(handle, port), f"unbind port {port}")

    def notify(self, port: int) -> None:
        """Send an event to the other end of a port.

        :raises OSError: ENOTCONN: it is none of ours.
        """
        with self._live() as handle:
            self._result(self._library.xenevtchn_notify(handle, port), f"notify port {port}")

    def pending(self) -> int:
        """The next port with an event, masked now. Waits for one: call it when ``fileno()`` is readable.

        :raises OSError: EFBIG: events were lost, there were more ports than room for them.
        """
        with self._live() as handle:
            return self._result(self._library.xenevtchn_pending(handle), "take a pending event")

    def unmask(self, port: int) -> None:
        """Let events of a port arrive again; one that came meanwhile is pending at once.

        :raises OSError: EINVAL: no port.
        """
        with self._live() as handle:
            self._result(self._library.xenevtchn_unmask(handle, port), f"unmask port {port}")

    def restrict(self, domid: int) -> None:
        """Let this handle only bind to ports of one domain from now on; that cannot be undone.

        Afterwards other domains, new unbound ports and virtual interrupts are EACCES.

        :raises OSError: EINVAL: domain 0, or no number of a domain; EACCES: it is restricted already.
        """
        with self._live() as handle:
            self._result(self._library.xenevtchn_restrict(handle, domid), f"restrict it to domain {domid}")

    def _result(self, value: int, what: str) -> int:
        if value < 0:
            raise failure(f"event channels: cannot {what}")
        return value

    def _close(self, pointer: int) -> None:
        if self._library.xenevtchn_close(pointer):
            raise failure("cannot close the event channel handle")
