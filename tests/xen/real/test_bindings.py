# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The bindings on a running Xen: grants, made and taken, mapped and copied."""

import ctypes
import errno
import mmap
import os
import re
import select
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyxenctrl
from pyxenctrl import (
    PAGE_SIZE,
    CopySegment,
    EventChannels,
    ForeignMemory,
    GrantShare,
    GrantTable,
    Protection,
    SharedPages,
)
from pyxenctrl.handle import Mapping

from .puppet import Puppet

DOM0 = 0
READ, BOTH = Protection.READ, Protection.READ | Protection.WRITE
NO_DOMAIN = 0x7FEF

# Maps a reference of dom0 that clears byte 7, says so, and waits to be killed.
MAPPER = """
import sys, time
from pyxenctrl import GrantTable, Protection
mapping = GrantTable().map_grant_ref_notify(
    0, int(sys.argv[1]), Protection.READ | Protection.WRITE, clear=7
)
print("mapped", flush=True)
time.sleep(600)
"""


def view(mapping: Mapping) -> "ctypes.Array[ctypes.c_ubyte]":
    return (ctypes.c_ubyte * mapping.size).from_address(mapping.address)


def address_of(buffer: "bytearray | mmap.mmap | memoryview") -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(buffer))


def fill(pages: SharedPages) -> bytes:
    content = os.urandom(pages.size)
    ctypes.memmove(pages.address, content, len(content))
    return content


@pytest.fixture
def share() -> Iterator[GrantShare]:
    with GrantShare() as share:
        yield share


@pytest.fixture
def table() -> Iterator[GrantTable]:
    with GrantTable() as table:
        yield table


@pytest.fixture
def channels() -> Iterator[EventChannels]:
    with EventChannels() as channels:
        yield channels


@pytest.mark.parametrize("kind", [list, tuple, lambda refs: array("I", refs)])
def test_pages_are_the_same_on_both_sides_and_in_the_order_asked_for(
    share: GrantShare, table: GrantTable, kind: type
) -> None:
    with share.share_pages(DOM0, 3, writable=True) as ours:
        assert len(set(ours.refs)) == 3
        assert bytes(view(ours)) == bytes(3 * PAGE_SIZE)
        content = fill(ours)
        backwards = kind(reversed(ours.refs))
        with table.map_domain_grant_refs(DOM0, backwards, BOTH) as theirs:
            assert bytes(view(theirs))[2 * PAGE_SIZE :] == content[:PAGE_SIZE]
            view(theirs)[0] = content[2 * PAGE_SIZE] ^ 0xFF
            assert view(ours)[2 * PAGE_SIZE] == content[2 * PAGE_SIZE] ^ 0xFF
        with table.map_grant_refs(kind([DOM0] * 3), kind(ours.refs), READ) as theirs:
            assert bytes(view(theirs))[: 2 * PAGE_SIZE] == content[: 2 * PAGE_SIZE]


def test_many_pages_at_once(share: GrantShare, table: GrantTable) -> None:
    with share.share_pages(DOM0, 200, writable=False) as ours:
        content = fill(ours)
        with table.map_domain_grant_refs(DOM0, array("I", ours.refs), READ) as theirs:
            assert bytes(view(theirs)) == content


def test_what_is_granted_read_only_is_not_mapped_writable(share: GrantShare, table: GrantTable) -> None:
    with share.share_pages(DOM0, 1, writable=False) as ours:
        view(ours)[5] = 17
        with pytest.raises(
            OSError, match=f"grants of domain 0 from reference {ours.refs[0]:#x} on writable"
        ) as e:
            table.map_grant_ref(DOM0, ours.refs[0], BOTH)
        assert e.value.errno == errno.EINVAL
        with table.map_grant_ref(DOM0, ours.refs[0], READ) as theirs:
            assert view(theirs)[5] == 17


def test_nothing_is_mapped_where_nothing_is_granted(puppet: Puppet, table: GrantTable) -> None:
    puppet.grant(8, 3)
    puppet.grant(9, 4, to=NO_DOMAIN)
    for domid, refs in [(puppet.domid, [8, 10]), (puppet.domid, [9]), (NO_DOMAIN, [8])]:
        with pytest.raises(OSError) as e:
            table.map_domain_grant_refs(domid, refs, READ)
        assert e.value.errno == errno.EINVAL
    assert puppet.grants_in_use() == []


def test_a_domain_sees_its_grants_in_use_until_they_are_unmapped(puppet: Puppet, table: GrantTable) -> None:
    puppet.memory[3 * PAGE_SIZE] = 33
    puppet.grant(8, 3)
    puppet.grant(12, 4, read_only=True)
    with table.map_domain_grant_refs(puppet.domid, [8, 12], READ) as mapping:
        assert view(mapping)[0] == 33
        assert puppet.grants_in_use() == [8, 12]
    with table.map_grant_ref(puppet.domid, 8, BOTH) as mapping:
        view(mapping)[1] = 34
        assert puppet.grants_in_use() == [8]
    assert puppet.grants_in_use() == []
    assert puppet.memory[3 * PAGE_SIZE + 1] == 34


def test_a_byte_is_cleared_when_the_page_is_unmapped(share: GrantShare, table: GrantTable) -> None:
    with share.share_pages(DOM0, 1, writable=True) as ours:
        view(ours)[99:102] = [7, 7, 7]
        with table.map_grant_ref_notify(DOM0, ours.refs[0], BOTH, clear=100):
            assert view(ours)[99:102] == [7, 7, 7]
        assert view(ours)[99:102] == [7, 0, 7]
        with table.map_grant_ref_notify(DOM0, ours.refs[0], READ):
            pass
        with pytest.raises(OSError) as e:
            table.map_grant_ref_notify(DOM0, ours.refs[0], READ, clear=0)
        assert e.value.errno == errno.EINVAL
        assert view(ours)[99:102] == [7, 0, 7]


def test_a_byte_is_cleared_when_the_process_that_mapped_it_is_killed(share: GrantShare) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(pyxenctrl.__file__).parents[1])}
    with share.share_pages(DOM0, 1, writable=True) as ours:
        view(ours)[7] = 7
        mapper = [sys.executable, "-c", MAPPER, str(ours.refs[0])]
        with subprocess.Popen(mapper, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "mapped\n"
            assert view(ours)[7] == 7
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert view(ours)[7] == 0


def test_an_event_is_sent_when_the_page_is_unmapped(
    share: GrantShare, table: GrantTable, channels: EventChannels
) -> None:
    there = channels.bind_unbound_port(DOM0)
    here = channels.bind_interdomain(DOM0, there)
    drain(channels)
    with share.share_pages(DOM0, 1, writable=True) as ours:
        with table.map_grant_ref_notify(DOM0, ours.refs[0], READ, port=here):
            assert not readable(channels)
        assert readable(channels, 30)
        assert channels.pending() == there
        with pytest.raises(OSError) as e:
            table.map_grant_ref_notify(DOM0, ours.refs[0], READ, port=4000)
        assert e.value.errno == errno.EINVAL


def test_the_granting_side_can_notify_too(
    share: GrantShare, table: GrantTable, channels: EventChannels
) -> None:
    there = channels.bind_unbound_port(DOM0)
    here = channels.bind_interdomain(DOM0, there)
    drain(channels)
    ours = share.share_page_notify(DOM0, writable=True, clear=11, port=here)
    view(ours)[11] = 1
    with table.map_grant_ref(DOM0, ours.refs[0], READ) as theirs:
        assert view(theirs)[11] == 1
        ours.close()
        # Told while the other side still has the page: that keeps it.
        assert view(theirs)[11] == 0
        assert readable(channels, 30)
    assert channels.pending() == there


def drain(channels: EventChannels) -> None:
    # A port is pending as soon as it is bound.
    while readable(channels):
        channels.unmask(channels.pending())


def readable(channels: EventChannels, seconds: float = 0) -> bool:
    return bool(select.select([channels.fileno()], [], [], seconds)[0])


def segments(*each: CopySegment) -> "ctypes.Array[CopySegment]":
    return (CopySegment * len(each))(*each)


def test_copies_from_and_to_a_domain(puppet: Puppet, table: GrantTable) -> None:
    content = os.urandom(3 * PAGE_SIZE)
    puppet.memory[5 * PAGE_SIZE : 8 * PAGE_SIZE] = content
    for index in range(3):
        puppet.grant(20 + index, 5 + index)
    puppet.grant(30, 9)
    got = bytearray(3 * PAGE_SIZE + 1)
    put = bytearray(os.urandom(1000))
    domid, into = puppet.domid, address_of(got) + 1  # at no page's beginning: each crosses one here
    table.copy(
        segments(
            *(CopySegment.from_grant(domid, 20 + i, 0, into + i * PAGE_SIZE, PAGE_SIZE) for i in range(3)),
            CopySegment.to_grant(domid, 30, 24, address_of(put), len(put)),
        )
    )
    assert got[1:] == content
    at = 9 * PAGE_SIZE + 24
    assert puppet.memory[at : at + len(put)] == put
    assert not any(puppet.memory[at - 24 : at]), "nothing before it"
    assert not any(puppet.memory[at + len(put) : 10 * PAGE_SIZE]), "nor behind it"
    assert puppet.grants_in_use() == []


def test_more_pieces_than_the_kernel_takes_at_once(puppet: Puppet, table: GrantTable) -> None:
    puppet.memory[: 64 * 8] = content = os.urandom(64 * 8)
    puppet.grant(8, 0)
    got = bytearray(len(content))
    to = address_of(got)
    table.copy(
        segments(
            *(CopySegment.from_grant(puppet.domid, 8, 8 * i, to + 8 * i, 8) for i in reversed(range(64)))
        )
    )
    assert got == content


def test_the_pieces_around_one_that_fails_are_copied(puppet: Puppet, table: GrantTable) -> None:
    puppet.memory[:3] = b"abc"
    puppet.grant(8, 0)
    puppet.grant(9, 1, read_only=True)
    puppet.grant(10, 2, to=NO_DOMAIN)
    got = bytearray(3)
    to, domid = address_of(got), puppet.domid
    failing = {
        "reference 0x1f4": CopySegment.from_grant(domid, 500, 0, to + 1, 1),
        "reference 0xffffffff": CopySegment.from_grant(domid, 0xFFFFFFFF, 0, to + 1, 1),
        "granted to another": CopySegment.from_grant(domid, 10, 0, to + 1, 1),
        "read-only": CopySegment.to_grant(domid, 9, 0, to, 1),
        "no such domain": CopySegment.from_grant(NO_DOMAIN, 8, 0, to + 1, 1),
    }
    outcomes = {}
    for what, bad in failing.items():
        got[:] = bytes(3)
        each = segments(
            CopySegment.from_grant(domid, 8, 0, to, 1), bad, CopySegment.from_grant(domid, 8, 2, to + 2, 1)
        )
        with pytest.raises(OSError, match=re.escape(f"{bad} (segment 1 of 3): ")) as e:
            table.copy(each)
        assert (got, each[0].status, each[2].status) == (b"a\0c", 0, 0)
        outcomes[what] = (each[1].status, e.value.errno, str(e.value).rpartition("(")[2])
    assert outcomes == {
        "reference 0x1f4": (-1, errno.EINVAL, "GNTST_general_error)"),
        "reference 0xffffffff": (-3, errno.EINVAL, "GNTST_bad_gntref)"),
        "granted to another": (-1, errno.EINVAL, "GNTST_general_error)"),
        "read-only": (-1, errno.EINVAL, "GNTST_general_error)"),
        "no such domain": (-2, errno.ESRCH, "GNTST_bad_domain)"),
    }
    assert puppet.memory[PAGE_SIZE] == 0
    assert puppet.grants_in_use() == []


def test_memory_here_must_be_ours_and_writable(puppet: Puppet, table: GrantTable) -> None:
    puppet.grant(8, 0)
    with ForeignMemory() as foreign, foreign.map(puppet.domid, puppet.frames[1:2], BOTH) as mapping:
        refused = [CopySegment.from_grant(puppet.domid, 8, 0, address, 8) for address in (mapping.address, 8)]
        refused += [CopySegment.to_grant(puppet.domid, 8, 0, mapping.address, 8)]
        for segment in refused:
            with pytest.raises(OSError, match="cannot copy 1 segments from or to grants") as e:
                table.copy(segments(segment))
            assert e.value.errno == errno.EFAULT
    nothing = CopySegment()
    nothing.n = 8
    with pytest.raises(OSError) as e:
        table.copy(segments(nothing))
    assert e.value.errno == errno.EINVAL


def test_copies_between_pages_granted_within_dom0(share: GrantShare, table: GrantTable) -> None:
    with share.share_pages(DOM0, 1, writable=True) as ours:
        buffer = bytearray(b"from here")
        table.copy(segments(CopySegment.to_grant(DOM0, ours.refs[0], 4087, address_of(buffer), len(buffer))))
        assert bytes(view(ours))[4087:] == b"from here"
        view(ours)[0:2] = list(b"ha")
        table.copy(segments(CopySegment.from_grant(DOM0, ours.refs[0], 0, address_of(buffer), 2)))
        assert buffer == b"haom here"


def test_the_limit_is_accepted(table: GrantTable) -> None:
    table.set_max_grants(64)
