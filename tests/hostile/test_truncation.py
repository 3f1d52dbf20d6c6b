# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Files that a front-end shares besides guest memory, and then cuts off: nobody else may lose by that."""

import os

import pytest

import vhost
from tests.backend.serving import Serving
from tests.hostile.raw import good_request

ROUNDS = 40


def test_a_dirty_log_is_cut_off(server: Serving) -> None:
    with vhost.connect(server.path, ram_size=1 << 20) as frontend:
        frontend.log_start()
        assert frontend.request(b"abc", 3) == b"cba"
        log = frontend._session.log
        assert log is not None
        os.ftruncate(log.fileno(), 0)
        for _ in range(ROUNDS):
            assert frontend.request(b"abc", 3) == b"cba"
    good_request(server)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_an_inflight_region_is_cut_off(server: Serving, packed: bool) -> None:
    with vhost.connect(server.path, ram_size=1 << 20, packed=packed, inflight=True) as frontend:
        assert frontend.request(b"abc", 3) == b"cba"
        region = frontend._session.inflight
        assert region is not None
        os.ftruncate(region._fd, 0)
        for _ in range(ROUNDS):
            assert frontend.request(b"abc", 3) == b"cba"
    good_request(server)
