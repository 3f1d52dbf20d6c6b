# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libxenctrl: making domains and looking after them (xenctrl.h). For a toolstack, in a privileged domain."""

import ctypes
import errno
import os
import uuid
from array import array
from collections.abc import Iterable
from typing import Final, final

from pyxenctrl.domain import DomainInfo, DomainKind, Emulation
from pyxenctrl.handle import Handle
from pyxenctrl.layouts import DomainInfoRecord, layout, library, newest_installed, running, written
from pyxenctrl.library import failure

__all__ = ("Control",)

_U32, _U64 = ctypes.c_uint32, ctypes.c_uint64
_FLAG_HVM: Final = 1 << 0
_FLAG_HAP: Final = 1 << 1
_VERSION_COMMAND: Final = 0  # XENVER_version
_KIB_PER_PAGE: Final = 4
_LIST_BATCH: Final = 256


@final
class Control(Handle):
    """A handle for creating, inspecting and destroying domains.

    :raises OSError: the library of the Xen that runs is not installed; ENOTSUP: its structures are not known;
        or the hypervisor cannot be talked to.
    """

    def __init__(self) -> None:
        version = running() or newest_installed()
        self._layout = layout(version)
        self._library = library(version)
        #: The version of Xen, which is the library's.
        self.version: Final = version
        pointer = self._library.xc_interface_open(None, None, 0)
        if not pointer:
            raise failure("cannot talk to the hypervisor (is this a privileged Xen domain?)")
        super().__init__(pointer)
        # Only a kernel that does not tell its Xen lets the two be different.
        found = self._call("version", _VERSION_COMMAND, None, what="ask for the version of Xen")
        if divmod(found, 1 << 16) != version:
            self.close()
            raise OSError(
                errno.ENOTSUP,
                f"this is Xen {written(divmod(found, 1 << 16))}, but of its libraries that of Xen "
                f"{written(version)} is installed",
            )

    def create_domain(
        self,
        kind: DomainKind,
        *,
        max_vcpus: int = 1,
        grant_version: int = 1,
        max_event_port: int = 1023,
        max_grant_frames: int = -1,
        max_maptrack_frames: int = -1,
        emulation: Emulation = Emulation.PVH,
        handle: uuid.UUID | None = None,
    ) -> int:
        """Make a domain without memory and without vCPUs, paused; returns its domid.

        :param grant_version: the highest version of grant tables it may use.
        :param max_grant_frames: pages that its grant table may have; -1 for the hypervisor's default.
        :param max_maptrack_frames: pages for keeping track of what it maps itself; -1 likewise.
        :param emulation: what Xen emulates for an HVM domain, nothing of which a PV domain gets.
        :param handle: its UUID; a random one otherwise.
        :raises OSError: EOPNOTSUPP, EINVAL: a combination that Xen does not have; ENOMEM; EPERM: this domain
            may not.
        """
        hvm = kind is DomainKind.HVM
        wanted = self._layout(
            flags=_FLAG_HVM | _FLAG_HAP if hvm else 0,
            max_vcpus=max_vcpus,
            max_evtchn_port=max_event_port,
            max_grant_frames=max_grant_frames,
            max_maptrack_frames=max_maptrack_frames,
            grant_opts=grant_version,
            emulation_flags=emulation if hvm else 0,
        )
        wanted.handle[:] = [*(handle or uuid.uuid4()).bytes]
        domid = _U32(0)  # the hypervisor chooses
        what = f"create a domain of the kind {kind.name}"
        self._call("domain_create", ctypes.byref(domid), ctypes.byref(wanted), what=what)
        return domid.value

    def max_vcpus(self, domid: int, count: int) -> None:
        """Give a new domain its vCPUs, as many as it was created for.

        :raises OSError: ESRCH: no such domain; EINVAL: another number.
        """
        self._call("domain_max_vcpus", domid, count, what=f"give domain {domid} {count} vCPUs")

    def set_max_memory(self, domid: int, pages: int) -> None:
        """Limit how many pages a domain may have; a new one may have none.

        :raises OSError: ESRCH: no such domain.
        """
        what = f"limit domain {domid} to {pages} pages"
        self._call("domain_setmaxmem", domid, pages * _KIB_PER_PAGE, what=what)

    def populate_physmap(self, domid: int, frames: Iterable[int]) -> "array[int]":
        """Give a domain memory at these guest frame numbers.

        :returns: the frames for mapping the memory: machine frames of a PV domain, else those given.
        :raises OSError: ESRCH: no such domain; EBUSY: not all of them, for want of memory or over the limit
            of the domain, and then some may be there.
        """
        numbers = array("Q", frames)
        what = f"populate {len(numbers)} frames of domain {domid}"
        self._extents("populate_physmap_exact", domid, numbers, 0, 0, what=what)
        return numbers

    def decrease_reservation(self, domid: int, frames: Iterable[int]) -> None:
        """Take memory away from a domain, by the frames that ``populate_physmap`` returned.

        :raises OSError: ESRCH: no such domain; EINVAL: not all of them, as some are no memory of it.
        """
        numbers = array("Q", frames)
        what = f"take {len(numbers)} frames from domain {domid}"
        self._extents("decrease_reservation_exact", domid, numbers, 0, what=what)

    def pause(self, domid: int) -> None:
        """Stop a domain's vCPUs. Pauses are counted.

        :raises OSError: ESRCH: no such domain.
        """
        self._call("domain_pause", domid, what=f"pause domain {domid}")

    def unpause(self, domid: int) -> None:
        """Let a domain's vCPUs run, if it was paused once; a new domain was.

        :raises OSError: ESRCH: no such domain.
        """
        self._call("domain_unpause", domid, what=f"unpause domain {domid}")

    def shutdown(self, domid: int, reason: int) -> None:
        """Stop a domain as if it had done so itself.

        :raises OSError: ESRCH: no such domain.
        """
        self._call("domain_shutdown", domid, reason, what=f"shut domain {domid} down")

    def destroy(self, domid: int) -> None:
        """End a domain. As long as others map memory of it, a dying domain without vCPUs remains.

        :raises OSError: ESRCH: no such domain.
        """
        self._call("domain_destroy", domid, what=f"destroy domain {domid}")

    def info(self, domid: int) -> DomainInfo | None:
        """What there is to know of a domain; None if there is no such domain."""
        found = self._list(domid, 1)
        return found[0] if found and found[0].domid == domid else None

    def domains(self) -> list[DomainInfo]:
        """All domains, this one among them, by ascending domid."""
        found: list[DomainInfo] = []
        while batch := self._list(found[-1].domid + 1 if found else 0, _LIST_BATCH):
            found += batch
        return found

    def _list(self, first: int, limit: int) -> list[DomainInfo]:
        records = (DomainInfoRecord * limit)()
        count = self._call("domain_getinfolist", first, limit, records, what=f"list domains from {first} on")
        return [DomainInfo.from_record(record) for record in records[:count]]

    def hvm_context(self, domid: int) -> bytes:
        """The state of an HVM domain's vCPUs and emulated devices: records as in public/hvm/save.h.

        :raises OSError: ESRCH: no such domain; EINVAL: it is not an HVM domain.
        """
        what = f"read the context of domain {domid}"
        size = self._call("domain_hvm_getcontext", domid, None, 0, what=what)
        context = (ctypes.c_uint8 * size)()
        size = self._call("domain_hvm_getcontext", domid, context, size, what=what)
        return bytes(context[:size])

    def set_hvm_context(self, domid: int, context: bytes) -> None:
        """Set the state of an HVM domain's vCPUs and emulated devices, of those there are records of.

        :raises OSError: ESRCH: no such domain; EINVAL: it is not an HVM domain, or this is no such state.
        """
        what = f"set the context of domain {domid}"
        self._call("domain_hvm_setcontext", domid, context, len(context), what=what)

    def hvm_param(self, domid: int, param: int) -> int:
        """A parameter of an HVM domain: ``HVM_PARAM_*`` of public/hvm/params.h.

        :raises OSError: ESRCH: no such domain; EINVAL: no such parameter, or not an HVM domain.
        """
        value = _U64()
        what = f"read HVM parameter {param} of domain {domid}"
        self._call("hvm_param_get", domid, param, ctypes.byref(value), what=what)
        return value.value

    def set_hvm_param(self, domid: int, param: int, value: int) -> None:
        """Set a parameter of an HVM domain: ``HVM_PARAM_*`` of public/hvm/params.h.

        :raises OSError: ESRCH: no such domain; EINVAL: no such parameter or value, or not an HVM domain;
            EEXIST: it can be set once only.
        """
        what = f"set HVM parameter {param} of domain {domid} to {value:#x}"
        self._call("hvm_param_set", domid, param, value, what=what)

    def alloc_unbound_port(self, domid: int, remote: int) -> int:
        """An event channel port of a domain that another domain may bind to.

        :raises OSError: ESRCH: no such domain; ENOSPC: it has no ports left.
        """
        what = f"allocate a port of domain {domid} for domain {remote}"
        return self._call("evtchn_alloc_unbound", domid, remote, what=what)

    def _extents(self, name: str, domid: int, numbers: "array[int]", *arguments: int, what: str) -> None:
        count = len(numbers)
        frames = (_U64 * count).from_buffer(numbers)
        try:
            self._call(f"domain_{name}", domid, count, *arguments, frames, what=what)
        except OSError as error:
            # Of a domain that is not there the hypervisor says that none of its frames were done.
            if self.info(domid) is None:
                code = errno.ESRCH
                raise OSError(code, f"cannot {what}: {os.strerror(code)}") from error
            raise

    def _call(self, name: str, *arguments: object, what: str) -> int:
        with self._live() as handle:
            result: int = getattr(self._library, f"xc_{name}")(handle, *arguments)
            if result < 0:
                raise failure(f"cannot {what}")
        return result

    def _close(self, pointer: int) -> None:
        if self._library.xc_interface_close(pointer):
            raise failure("cannot close the control handle")
