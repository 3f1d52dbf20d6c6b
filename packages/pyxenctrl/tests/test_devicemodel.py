# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the device model's library is asked for, and how long servers live."""

import ctypes
import errno
import gc
from typing import Any

import pytest

from pyxenctrl import devicemodel
from pyxenctrl.devicemodel import DeviceModel


@pytest.fixture
def library(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """libxendevicemodel, whose servers have the number 5."""

    def create(handle: int, domid: int, mode: int, number: Any) -> int:
        number._obj.value = 5
        return 0

    recorder.functions["xendevicemodel_create_ioreq_server"] = create
    monkeypatch.setattr(devicemodel, "library", lambda: recorder)
    return recorder


@pytest.fixture
def model(library: Any) -> DeviceModel:
    model = DeviceModel()
    library.calls.clear()
    return model


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("set_isa_irq_level", (7, 5, True)),
        ("set_irq_level", (7, 40, False)),
        ("set_pci_intx_level", (7, 0, 0, 3, 1, True)),
        ("set_pci_link_route", (7, 2, 11)),
        ("inject_msi", (7, 0xFEE00000, 0x40)),
        ("modified_memory", (7, 0x10, 20)),
        ("restrict", (7,)),
    ],
)
def test_calls_are_passed_on(library: Any, model: DeviceModel, call: str, arguments: tuple[int, ...]) -> None:
    getattr(model, call)(*arguments)
    assert library.calls == [(f"xendevicemodel_{call}", 1, *arguments)]
    library.fails(f"xendevicemodel_{call}", errno.ESRCH)
    with pytest.raises(ProcessLookupError, match=r"cannot .* domain 7.*: No such process"):
        getattr(model, call)(*arguments)


def test_what_is_written_comes_as_a_bitmap(library: Any, model: DeviceModel) -> None:
    def track(handle: int, domid: int, first: int, count: int, bitmap: Any) -> int:
        assert ctypes.sizeof(bitmap) >= (count + 7) // 8
        for index in range(len(bitmap)):
            bitmap[index] = 0x8000000000000001 + index
        return 0

    library.functions["xendevicemodel_track_dirty_vram"] = track
    assert model.track_dirty_vram(7, 0x10, 20) == bytes([1, 0, 0])
    assert model.track_dirty_vram(7, 0x10, 72) == bytes([1, 0, 0, 0, 0, 0, 0, 0x80, 2])
    assert model.track_dirty_vram(7, 0x10, 0) == b""


def test_vcpus_are_counted(library: Any, model: DeviceModel) -> None:
    def count(handle: int, domid: int, number: Any) -> int:
        number._obj.value = 3
        return 0

    library.functions["xendevicemodel_nr_vcpus"] = count
    assert model.nr_vcpus(7) == 3


def test_a_server_asks_for_ranges(library: Any, model: DeviceModel) -> None:
    with model.create_ioreq_server(7) as server:
        assert (server.id, server.domid) == (5, 7)
        server.map_mmio(0x1000, 0x1FFF)
        server.unmap_mmio(0x1000, 0x1FFF)
        server.map_port_io(0x60, 0x64)
        server.unmap_port_io(0x60, 0x64)
        server.map_pci(1, 2, 3, 4)
        server.unmap_pci(1, 2, 3, 4)
        server.enable()
        server.disable()
    (name, handle, domid, mode, _), *calls = library.calls
    assert (name, handle, domid, mode) == ("xendevicemodel_create_ioreq_server", 1, 7, 0)
    assert calls == [
        ("xendevicemodel_map_io_range_to_ioreq_server", 1, 7, 5, True, 0x1000, 0x1FFF),
        ("xendevicemodel_unmap_io_range_from_ioreq_server", 1, 7, 5, True, 0x1000, 0x1FFF),
        ("xendevicemodel_map_io_range_to_ioreq_server", 1, 7, 5, False, 0x60, 0x64),
        ("xendevicemodel_unmap_io_range_from_ioreq_server", 1, 7, 5, False, 0x60, 0x64),
        ("xendevicemodel_map_pcidev_to_ioreq_server", 1, 7, 5, 1, 2, 3, 4),
        ("xendevicemodel_unmap_pcidev_from_ioreq_server", 1, 7, 5, 1, 2, 3, 4),
        ("xendevicemodel_set_ioreq_server_state", 1, 7, 5, True),
        ("xendevicemodel_set_ioreq_server_state", 1, 7, 5, False),
        ("xendevicemodel_destroy_ioreq_server", 1, 7, 5),
    ]


@pytest.mark.parametrize(("buffered", "mode"), [(False, 0), (True, 1)])
def test_where_requests_are(library: Any, model: DeviceModel, buffered: bool, mode: int) -> None:
    def info(handle: int, domid: int, number: int, frame: Any, ring: Any, port: Any) -> int:
        for pointer, value in ((frame, 0x200), (ring, 0x201), (port, 9)):
            if pointer is not None:
                pointer._obj.value = value
        return 0

    library.functions["xendevicemodel_get_ioreq_server_info"] = info
    with model.create_ioreq_server(7, buffered=buffered) as server:
        assert library.calls[0][3] == mode
        where = server.info()
        assert (where.frame, where.buffered_frame) == (0x200, 0x201 if buffered else None)
        assert server.buffered_port() == (9 if buffered else None)
        # Asking for frames moves the requests there, so the port alone is asked for.
        assert library.calls[-1][4:6] == (None, None)


def test_a_server_keeps_its_model_open(library: Any, model: DeviceModel) -> None:
    server = model.create_ioreq_server(7)
    model.close()
    with pytest.raises(OSError, match="DeviceModel is closed"):
        server.enable()
    assert "xendevicemodel_close" not in library.names()
    server.close()
    server.close()
    assert library.names() == ["xendevicemodel_destroy_ioreq_server", "xendevicemodel_close"]


def test_what_is_forgotten_is_destroyed(library: Any) -> None:
    DeviceModel().create_ioreq_server(7)
    gc.collect()
    assert library.names()[-2:] == ["xendevicemodel_destroy_ioreq_server", "xendevicemodel_close"]


@pytest.mark.parametrize("code", [errno.ESRCH, errno.ENOENT])
def test_a_server_may_be_gone_with_its_domain(library: Any, model: DeviceModel, code: int) -> None:
    server = model.create_ioreq_server(7)
    library.fails("xendevicemodel_destroy_ioreq_server", code)
    server.close()
    assert server.closed


def test_a_server_that_cannot_be_destroyed(library: Any, model: DeviceModel) -> None:
    server = model.create_ioreq_server(7)
    library.fails("xendevicemodel_destroy_ioreq_server", errno.EPERM)
    with pytest.raises(PermissionError, match="cannot destroy ioreq server 5 of domain 7"):
        server.close()
    model.close()
    assert library.names()[-1] == "xendevicemodel_close", "it does not hold the model open"


def test_a_device_that_cannot_be_opened(library: Any) -> None:
    library.functions["xendevicemodel_open"] = lambda *_: None
    with pytest.raises(OSError, match="cannot open /dev/xen/privcmd"):
        DeviceModel()
