# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The structures of each version of Xen, and which version's library is taken of those installed."""

import ctypes
import errno
import platform
from pathlib import Path
from typing import Any

import pytest

from pyxenctrl import control, layouts
from pyxenctrl.control import Control
from pyxenctrl.layouts import DomainInfoRecord, Version

VERSIONS = [(4, 17), (4, 18), (4, 19), (4, 20)]

# As a C compiler lays them out, by the headers of each version.
CREATE_17 = {
    "ssidref": 0,
    "handle": 4,
    "flags": 20,
    "iommu_opts": 24,
    "max_vcpus": 28,
    "max_evtchn_port": 32,
    "max_grant_frames": 36,
    "max_maptrack_frames": 40,
    "grant_opts": 44,
    "vmtrace_size": 48,
    "cpupool_id": 52,
    "emulation_flags": 56,
    "misc_flags": 60,
}
CREATE_19 = {
    **CREATE_17,
    "altp2m_opts": 48,
    "vmtrace_size": 52,
    "cpupool_id": 56,
    "emulation_flags": 60,
    "misc_flags": 64,
}
CREATE = {
    (4, 17): (64, CREATE_17),
    (4, 18): (64, CREATE_17),
    (4, 19): (68, CREATE_19),
    (4, 20): (68, CREATE_19),
}
INFO = {
    "domain": 0,
    "flags": 4,
    "tot_pages": 8,
    "max_pages": 16,
    "outstanding_pages": 24,
    "shr_pages": 32,
    "paged_pages": 40,
    "shared_info_frame": 48,
    "cpu_time": 56,
    "nr_online_vcpus": 64,
    "max_vcpu_id": 68,
    "ssidref": 72,
    "handle": 76,
    "cpupool": 92,
    "gpaddr_bits": 96,
    "emulation_flags": 104,
    "misc_flags": 108,
}


def offsets(structure: type[ctypes.Structure]) -> dict[str, int]:
    return {
        name: getattr(structure, name).offset for name, *_ in structure._fields_ if not name.startswith("pad")
    }


def test_there_are_layouts_of_these_versions() -> None:
    assert sorted(layouts.LAYOUTS) == VERSIONS


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize("version", VERSIONS)
def test_structures_are_those_of_the_headers(version: Version) -> None:
    structure = layouts.layout(version)
    assert (ctypes.sizeof(structure), offsets(structure)) == CREATE[version]
    assert (ctypes.sizeof(DomainInfoRecord), offsets(DomainInfoRecord)) == (112, INFO)


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize("version", [(4, 16), (4, 21), (5, 17)])
def test_an_unknown_version_is_refused(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "running", lambda: version)
    name = f"{version[0]}.{version[1]}"
    with pytest.raises(
        OSError, match=f"Xen {name} is not bound: .* those of 4.17, 4.18, 4.19, 4.20"
    ) as error:
        Control()
    assert error.value.errno == errno.ENOTSUP


def test_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(OSError, match="on x86_64 only, and this is aarch64"):
        layouts.layout((4, 17))


def test_the_kernel_tells_which_xen_runs(tmp_path: Path) -> None:
    assert layouts.running(tmp_path / "hypervisor") is None
    (tmp_path / "version").mkdir()
    (tmp_path / "version/major").write_text("4\n")
    (tmp_path / "version/minor").write_text("18\n")
    (tmp_path / "type").write_text("xen\n")
    assert layouts.running(tmp_path) == (4, 18)
    (tmp_path / "type").write_text("other\n")
    assert layouts.running(tmp_path) is None


class Installed:
    """Libraries of some versions of Xen, as far as the dynamic linker is asked."""

    def __init__(self, library: Any, *versions: str) -> None:
        self.sonames = [f"libxenctrl.so.{version}" for version in versions]
        self.library = library
        self.asked: list[str] = []

    def declare(self, soname: str, prefix: str, functions: dict[str, object]) -> Any:
        assert prefix == "xc_"
        assert "domain_create" in functions
        self.asked.append(soname)
        if soname not in self.sonames:
            raise FileNotFoundError(errno.ENOENT, f"cannot load {soname}")
        return self.library


@pytest.fixture
def install(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes libraries of these versions the installed ones, below a Xen of that version."""

    def make(*versions: str, runs: Version | None, really: Version) -> Installed:
        installed = Installed(recorder, *versions)
        layouts.library.cache_clear()
        monkeypatch.setattr(layouts, "declare", installed.declare)
        monkeypatch.setattr(control, "running", lambda: runs)
        recorder.functions["xc_version"] = lambda *_: really[0] << 16 | really[1]
        return installed

    yield make
    layouts.library.cache_clear()


def test_of_several_libraries_that_of_the_running_xen_is_taken(install: Any) -> None:
    installed = install("4.17", "4.18", "4.20", runs=(4, 18), really=(4, 18))
    with Control() as opened:
        assert opened.version == (4, 18)
    assert installed.asked == ["libxenctrl.so.4.18"]


def test_no_other_library_is_taken_for_it(install: Any) -> None:
    install("4.17", "4.20", runs=(4, 18), really=(4, 18))
    with pytest.raises(FileNotFoundError, match=r"libxenctrl\.so\.4\.18"):
        Control()


def test_the_newest_library_is_asked_when_the_kernel_does_not_tell(install: Any, recorder: Any) -> None:
    installed = install("4.17", "4.19", runs=None, really=(4, 19))
    with Control() as opened:
        assert opened.version == (4, 19)
    assert installed.asked == ["libxenctrl.so.4.20", "libxenctrl.so.4.19"]
    assert recorder.names() == ["xc_interface_open", "xc_version", "xc_interface_close"]


def test_a_library_of_another_xen_is_refused(install: Any, recorder: Any) -> None:
    install("4.17", "4.19", runs=None, really=(4, 17))
    with pytest.raises(OSError, match=r"this is Xen 4\.17, .* that of Xen 4\.19 is installed") as error:
        Control()
    assert error.value.errno == errno.ENOTSUP
    assert recorder.names() == ["xc_interface_open", "xc_version", "xc_interface_close"]


def test_no_library_at_all(install: Any) -> None:
    installed = install(runs=None, really=(4, 17))
    with pytest.raises(FileNotFoundError, match=r"libxenctrl\.so\.4\.17"):
        Control()
    assert len(installed.asked) == len(VERSIONS)
