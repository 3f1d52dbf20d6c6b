# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a grant copy is described by: the layout of a segment, and Xen's words about it."""

import errno
import struct

import pytest

from pyxenctrl import CopySegment
from pyxenctrl.grantcopy import Status


def test_the_layout_is_that_of_the_c_structure() -> None:
    # source, destination: address u64, or reference u32, offset u16, domid u16; then length, flags, status.
    segment = CopySegment.from_grant(5, 0x12345678, 0x9AB, 0x7FFF00001001, 0x655)
    segment.status = -3
    assert bytes(segment)[:22] == struct.pack("<IHHQHHh", 0x12345678, 0x9AB, 5, 0x7FFF00001001, 0x655, 1, -3)
    segment = CopySegment.to_grant(5, 0x12345678, 0x9AB, 0x7FFF00001001, 0x655)
    assert bytes(segment) == struct.pack("<QIHHHHh2x", 0x7FFF00001001, 0x12345678, 0x9AB, 5, 0x655, 2, 0)


@pytest.mark.parametrize(
    ("offset", "n"), [(0, 4097), (4096, 1), (1, 4096), (-1, 1), (0, -1), (65536, 1), (0, 65536)]
)
def test_a_segment_is_inside_one_page(offset: int, n: int) -> None:
    for make in (CopySegment.from_grant, CopySegment.to_grant):
        with pytest.raises(ValueError, match="are not inside one page"):
            make(5, 7, offset, 0x1000, n)


@pytest.mark.parametrize(("offset", "n"), [(0, 4096), (4095, 1), (4096, 0)])
def test_a_segment_may_end_where_the_page_does(offset: int, n: int) -> None:
    assert CopySegment.from_grant(5, 7, offset, 0x1000, n).n == n


@pytest.mark.parametrize(("domid", "ref"), [(-1, 7), (1 << 16, 7), (5, -1), (5, 1 << 32)])
def test_numbers_are_not_cut_off(domid: int, ref: int) -> None:
    with pytest.raises(ValueError, match="cannot exist"):
        CopySegment.to_grant(domid, ref, 0, 0x1000, 1)


def test_a_segment_in_words() -> None:
    each = CopySegment.from_grant(5, 7, 16, 0x1000, 3), CopySegment.to_grant(5, 7, 16, 0x1000, 3)
    assert [str(segment) for segment in each] == [
        f"3 bytes {way} offset 0x10 of grant 0x7 of domain 5" for way in ("from", "to")
    ]


def test_every_status_has_words_and_an_errno() -> None:
    assert [*Status] == [Status(-code) for code in range(14)]
    assert all(status.words for status in Status)
    assert all(status.errno in errno.errorcode for status in Status if status)
    assert Status.of(-12).errno == errno.EAGAIN
    assert Status.of(-99) is Status.GENERAL_ERROR
