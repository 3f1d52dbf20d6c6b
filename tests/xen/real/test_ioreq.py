# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Serving a domain's accesses: ioreq servers, and the requests that come in their pages."""

import errno
import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import pytest

from pyxenctrl import PAGE_SIZE, ForeignMemory, Protection
from pyxenctrl.control import Control
from pyxenctrl.devicemodel import DeviceModel
from pyxenctrl.evtchn import EventChannels
from pyxenctrl.foreignmemory import ResourceKind
from pyxenctrl.ioreq import (
    BUFFERED_FRAME,
    SLOTS_FRAME,
    BufferedIoreqPage,
    IoKind,
    IoreqPage,
    IoRequest,
)

from .puppet import SECONDS, Puppet, until, view

BOTH = Protection.READ | Protection.WRITE
HVM_PARAM_IOREQ_SERVER_PFN, HVM_PARAM_NR_IOREQ_SERVER_PAGES = 32, 33

MMIO = 0xFE000000
HLT = bytes.fromhex("f4")
READ_MMIO = bytes.fromhex("a1 00 00 00 fe  a3 00 20 00 00")  # mov eax, [MMIO]; mov [RESULT], eax
RESULT = 0x2000  # where the code below stores what it has read


class Server:
    """An enabled ioreq server with all that belongs to it, for a domain of one vCPU."""

    def __init__(self, model: DeviceModel, domid: int, *, buffered: bool = False) -> None:
        with ExitStack() as stack:
            self.ranges = stack.enter_context(model.create_ioreq_server(domid, buffered=buffered))
            memory = stack.enter_context(ForeignMemory())
            frames = 2 if buffered else 1
            first = BUFFERED_FRAME if buffered else SLOTS_FRAME
            mapping = stack.enter_context(
                memory.map_resource(domid, ResourceKind.IOREQ_SERVER, self.ranges.id, first, frames, BOTH)
            )
            pages = view(mapping)
            stack.callback(pages.release)
            self.slots = IoreqPage(pages[-PAGE_SIZE:])
            self.ring = BufferedIoreqPage(pages[:PAGE_SIZE])
            self.ranges.enable()
            self.channels = stack.enter_context(EventChannels())
            self.port = self.channels.bind_interdomain(domid, self.slots.port(0))
            self._stack = stack.pop_all()

    def serve(self, read: Callable[[IoRequest], int], done: Callable[[], bool]) -> list[IoRequest]:
        """Answers requests until `done`, reads with what `read` says; returns them."""
        seen: list[IoRequest] = []
        deadline = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < deadline, seen
            if not select.select([self.channels], [], [], 0.05)[0]:
                continue
            port = self.channels.pending()
            self.channels.unmask(port)
            assert port == self.port
            request = self.slots.take(0)
            if request is None:  # a port is pending when it is bound
                continue
            assert self.slots.take(0) is None
            seen.append(request)
            self.slots.answer(0, read(request))
            self.channels.notify(port)
        return seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self._stack.close()


def seen(requests: list[IoRequest]) -> list[tuple[IoKind, int, int, int | None]]:
    """Kind, address, size and, of writes, data."""
    for request in requests:
        assert (request.count, request.is_pointer, request.is_descending) == (1, False, False)
    return [
        (request.kind, request.address, request.size, None if request.is_read else request.data)
        for request in requests
    ]


def test_memory_and_ports_are_served(model: DeviceModel, hvm: Puppet) -> None:
    code = READ_MMIO + bytes.fromhex(
        "c7 05 04 00 00 fe 78 56 34 12"  # mov dword [MMIO + 4], 0x12345678
        "66 a1 06 00 00 fe"  # mov ax, [MMIO + 6]
        "66 a3 04 20 00 00"  # mov [RESULT + 4], ax
        "e4 60"  # in al, 0x60
        "e6 61"  # out 0x61, al
        "a2 08 20 00 00"  # mov [RESULT + 8], al
        "f4"
    )
    values = {MMIO: 0x74726976, MMIO + 6: 0xABCD_BEEF, 0x60: 0x77}  # more bytes than are read are cut off
    with Server(model, hvm.domid) as server:
        server.ranges.map_mmio(MMIO, MMIO + 0xFFF)
        server.ranges.map_port_io(0x60, 0x61)
        hvm.run(code)
        requests = server.serve(lambda request: values.get(request.address, 0), lambda: hvm.halted)
    assert seen(requests) == [
        (IoKind.MMIO, MMIO, 4, None),
        (IoKind.MMIO, MMIO + 4, 4, 0x12345678),
        (IoKind.MMIO, MMIO + 6, 2, None),
        (IoKind.PORT, 0x60, 1, None),
        (IoKind.PORT, 0x61, 1, 0x77),
    ]
    assert [hvm.word(RESULT), hvm.word(RESULT + 4), hvm.word(RESULT + 8)] == [0x74726976, 0xBEEF, 0x77]


def test_configuration_space_is_served(model: DeviceModel, hvm: Puppet) -> None:
    code = bytes.fromhex(
        "b8 04 1a 00 80  66 ba f8 0c  ef"  # out 0xcf8, 0x80001a04: device 3, function 2, register 4
        "66 ba fc 0c  ed"  # in eax, 0xcfc
        "a3 00 20 00 00  f4"
    )
    with Server(model, hvm.domid) as server:
        server.ranges.map_pci(0, 0, 3, 2)
        hvm.run(code)
        requests = server.serve(lambda _: 0x02100006, lambda: hvm.halted)
        server.ranges.unmap_pci(0, 0, 3, 2)
        with pytest.raises(FileNotFoundError, match=r"unmap pcidev from ioreq server .* 0000:00:03\.2"):
            server.ranges.unmap_pci(0, 0, 3, 2)
    assert seen(requests) == [(IoKind.PCI_CONFIG, 3 << 35 | 2 << 32 | 4, 4, None)]
    assert hvm.word(RESULT) == 0x02100006


def test_a_repeated_instruction_is_one_request(model: DeviceModel, hvm: Puppet) -> None:
    code = bytes.fromhex(
        "bf 00 20 00 00  b9 04 00 00 00  66 ba 60 00"  # mov edi, RESULT; mov ecx, 4; mov dx, 0x60
        "fc  f3 6c  f4"  # cld; rep insb
    )

    def read(request: IoRequest) -> int:
        hvm.memory[request.data : request.data + request.count * request.size] = b"four"
        return 0

    with Server(model, hvm.domid) as server:
        server.ranges.map_port_io(0x60, 0x60)
        hvm.run(code)
        requests = server.serve(read, lambda: hvm.halted)
    assert requests == [
        IoRequest(
            kind=IoKind.PORT,
            address=0x60,
            data=RESULT,
            size=1,
            count=4,
            is_read=True,
            is_pointer=True,
            is_descending=False,
        )
    ]
    assert hvm.memory[RESULT : RESULT + 4] == b"four"


@pytest.mark.parametrize("how", ["unmapped", "disabled", "destroyed"])
def test_what_is_not_served_reads_as_ones(model: DeviceModel, hvm: Puppet, how: str) -> None:
    with Server(model, hvm.domid) as server:
        server.ranges.map_mmio(MMIO, MMIO + 0xFFF)
        if how == "unmapped":
            server.ranges.unmap_mmio(MMIO, MMIO + 0xF)
        elif how == "disabled":
            server.ranges.disable()
        else:
            server.ranges.close()
        hvm.run(READ_MMIO + HLT)
        assert server.serve(lambda _: 0, lambda: hvm.halted) == []
    assert hvm.word(RESULT) == 0xFFFFFFFF


def test_a_clock_that_is_set_is_a_buffered_request(model: DeviceModel, pc: Puppet) -> None:
    code = bytes.fromhex("b0 09 e6 70  b0 99 e6 71  f4")  # out 0x70, 9; out 0x71, 0x99: the year
    with Server(model, pc.domid, buffered=True) as server, EventChannels() as channels:
        remote = server.ranges.buffered_port()
        assert remote is not None
        port = channels.bind_interdomain(pc.domid, remote)
        assert channels.pending() == port  # it is, when it is bound
        channels.unmask(port)
        pc.run(code)
        assert select.select([channels], [], [], SECONDS)[0]
        assert channels.pending() == port
        (request,) = server.ring.take()
        until(lambda: pc.halted)
        assert [*server.ring.take()] == []
    assert (request.kind, request.size) == (IoKind.TIME_OFFSET, 8)
    assert request.data > 60 * 86400 * 365  # by so many seconds


def test_a_server_without_a_ring_has_no_port(model: DeviceModel, hvm: Puppet) -> None:
    with model.create_ioreq_server(hvm.domid) as server:
        assert server.buffered_port() is None


def test_requests_in_the_guests_memory(control: Control, model: DeviceModel, hvm: Puppet) -> None:
    control.set_hvm_param(hvm.domid, HVM_PARAM_IOREQ_SERVER_PFN, 200)
    control.set_hvm_param(hvm.domid, HVM_PARAM_NR_IOREQ_SERVER_PAGES, 2)
    with model.create_ioreq_server(hvm.domid) as server:
        assert (server.info().frame, server.info().buffered_frame) == (200, None)
    with model.create_ioreq_server(hvm.domid, buffered=True) as server:
        assert (server.info().frame, server.info().buffered_frame) == (200, 201)


def test_ranges_do_not_overlap(model: DeviceModel, hvm: Puppet) -> None:
    with model.create_ioreq_server(hvm.domid) as server:
        server.map_port_io(0x100, 0x107)
        for start, end in ((0x100, 0x107), (0x107, 0x107), (0xFF, 0x100)):
            with pytest.raises(FileExistsError, match=f"ports {start:#x} to {end:#x}"):
                server.map_port_io(start, end)
        server.unmap_port_io(0x100, 0x103)
        server.map_port_io(0x100, 0x103)
        with pytest.raises(FileNotFoundError, match="ports 0x108 to 0x108"):
            server.unmap_port_io(0x108, 0x108)
        with pytest.raises(FileNotFoundError, match="memory 0xfe000000 to 0xfe000fff"):
            server.unmap_mmio(MMIO, MMIO + 0xFFF)
        with pytest.raises(OSError, match="ports 0x9 to 0x8") as refused:
            server.map_port_io(9, 8)
        assert refused.value.errno == errno.EINVAL


def test_a_server_ends_with_its_model_or_its_domain(control: Control, hvm: Puppet) -> None:
    model = DeviceModel()
    server = model.create_ioreq_server(hvm.domid)
    model.close()
    with pytest.raises(OSError, match="DeviceModel is closed"):
        server.enable()
    server.close()
    assert model._pointer is None
    with pytest.raises(OSError, match="IoreqServer is closed"):
        server.enable()
    with DeviceModel() as model, model.create_ioreq_server(hvm.domid) as server:
        assert server.id == 0  # the first one's number is free again
        hvm.close()
        until(lambda: control.info(hvm.domid) is None)
