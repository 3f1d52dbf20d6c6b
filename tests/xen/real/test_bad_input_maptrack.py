# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""This domain can map no more grants: the hypervisor's table of what it has mapped, maptrack, is full."""

from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle

import pytest

from pyxenctrl import GrantTable, Protection
from vhost.errors import RefusedError
from vhost.mem.grants import COPY_EACH

from .driver import Driver
from .frontend import GRANT, NO_ADVANCE
from .guest import Guest
from .puppet import Puppet
from .watch import SECONDS, Watch

pytestmark = pytest.mark.timeout(300)

PAGE = 4096
RING_PAGES = 3
COPIED, MAPPED = 512, COPY_EACH + PAGE  # bytes
AREA = -(-MAPPED // PAGE)  # pages of a request
REFS = [array("I", range(first, first + 900)) for first in (200, 1100)]


@contextmanager
def full(*puppets: Puppet) -> Iterator[None]:
    """Maps a page of some domains until no more can be mapped; each reference only some dozen times."""
    for puppet in puppets:
        for refs in REFS:
            for ref in refs:
                puppet.grant(ref, 0, read_only=True)
    with ExitStack() as stack:
        table = stack.enter_context(GrantTable())
        step = len(REFS[0])
        for puppet, refs in cycle([(puppet, refs) for puppet in puppets for refs in REFS]):
            try:
                stack.enter_context(
                    table.map_domain_grant_refs(puppet.domid, refs[:step], Protection.READ),
                )
            except OSError:
                step //= 2
                if not step:
                    break
        yield
    for puppet in puppets:
        for refs in REFS:
            for ref in refs:
                puppet.revoke(ref)


def test_no_more_grants_can_be_mapped(rng: Watch, blk: Watch, hvm: Puppet, pv: Puppet) -> None:
    """What is copied is served all the same, and the rest when there is room again."""
    driver, another = (Driver(puppet, GRANT | NO_ADVANCE, slots=8, span=AREA * PAGE) for puppet in (hvm, pv))
    data = driver.region(driver.pages, driver.pages + 1)
    hvm.grant(driver.ref(driver.pages), driver.pages)
    with Guest.running(rng.socket, driver) as guest, Guest(blk.socket, another) as waiting:
        assert guest.request([], [MAPPED])
        waiting.frontend.share(another.regions())
        with full(hvm, pv):
            assert guest.request([], [COPIED])
            with pytest.raises(RefusedError, match="SET_VRING_KICK"):
                waiting.frontend.start(another.place)
            blk.complaint("refused: SET_VRING_KICK.*cannot map 1 grants of domain")
            assert blk.pages == 0
            with pytest.raises(RefusedError, match="ADD_MEM_REG"):
                guest.add(data._replace(xen_flags=GRANT))
            rng.complaint("refused: ADD_MEM_REG.*cannot map 1 grants of domain")
            assert guest.request([], [COPIED])
            driver.add(0, [], [MAPPED])
            guest.submit()
            assert guest.frontend.broken(seconds=SECONDS)
            rng.complaint("ring 0 is broken .*cannot map .* grants of domain")
            assert rng.pages == RING_PAGES
        assert guest.frontend.stop() == 3
        guest.frontend.start(driver.place, base=3)
        guest.frontend.kick()
        assert guest.answers(1)[0][1]
        waiting.frontend.start(another.place)
        assert blk.pages == RING_PAGES
