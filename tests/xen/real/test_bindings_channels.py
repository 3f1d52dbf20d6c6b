# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The bindings on a running Xen: event channels and xenstore, by which domains meet."""

import errno
import os
import select
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pyxenctrl import Access, EventChannels, Permission, Store

from .puppet import Puppet

DOM0 = 0
NO_DOMAIN = 0x7FEF
PATIENCE = 30.0  # seconds; what is waited for comes at once, but the machine may be busy
TOP = "/local/pyxenctrl-test"


def readable(source: "EventChannels | Store", seconds: float = 0) -> bool:
    return bool(select.select([source], [], [], seconds)[0])


@pytest.fixture
def channels() -> Iterator[EventChannels]:
    with EventChannels() as channels:
        yield channels


@pytest.fixture
def store() -> Iterator[Store]:
    """A connection; what the test makes below TOP is removed."""
    with Store() as store:
        yield store
        store.remove(TOP)


@pytest.fixture
def other() -> Iterator[Store]:
    with Store() as other:
        yield other


def bound(one: EventChannels, another: EventChannels) -> tuple[int, int]:
    """Two ports that are connected, with nothing pending."""
    first = one.bind_unbound_port(DOM0)
    second = another.bind_interdomain(DOM0, first)
    for channels in (one, another):
        while readable(channels):
            channels.unmask(channels.pending())
    return first, second


def test_events_go_both_ways(channels: EventChannels) -> None:
    with EventChannels() as peers:
        here, there = bound(channels, peers)
        for sender, receiver, port in [(channels, peers, there), (peers, channels, here)]:
            sender.notify(here if sender is channels else there)
            assert readable(receiver, PATIENCE)
            assert not readable(sender)
            assert receiver.pending() == port
            receiver.unmask(port)
            assert not readable(receiver)


def test_a_port_is_masked_until_it_is_unmasked(channels: EventChannels) -> None:
    with EventChannels() as peers:
        here, there = bound(channels, peers)
        peers.notify(there)
        assert readable(channels, PATIENCE)
        assert channels.pending() == here
        peers.notify(there)
        assert not readable(channels, 0.2)
        channels.unmask(here)
        assert readable(channels, PATIENCE)
        assert channels.pending() == here


def test_ports_that_are_not_ours(channels: EventChannels) -> None:
    port = channels.bind_unbound_port(DOM0)
    channels.unbind(port)
    for use, code in [(channels.notify, errno.ENOTCONN), (channels.unbind, errno.ENOTCONN)]:
        with pytest.raises(OSError, match=f"event channels: cannot .* port {port}") as e:
            use(port)
        assert e.value.errno == code
    with pytest.raises(OSError, match=f"bind to port {port} of domain {NO_DOMAIN}") as e:
        channels.bind_interdomain(NO_DOMAIN, port)
    assert e.value.errno == errno.ESRCH


def test_virtual_interrupts(channels: EventChannels) -> None:
    xenoprof = 7  # nothing in dom0 uses it
    assert channels.bind_virq(xenoprof) > 0
    with EventChannels() as again, pytest.raises(OSError, match="bind VIRQ 7") as e:
        again.bind_virq(xenoprof)
    assert e.value.errno == errno.EEXIST


def test_a_restricted_handle_binds_to_one_domain_only(puppet: Puppet, channels: EventChannels) -> None:
    with pytest.raises(OSError, match="restrict it to domain 0") as e:
        channels.restrict(DOM0)
    assert e.value.errno == errno.EINVAL
    theirs = puppet.control.alloc_unbound_port(puppet.domid, DOM0)
    channels.restrict(puppet.domid)
    assert channels.bind_interdomain(puppet.domid, theirs) > 0
    for bind in (
        lambda: channels.bind_interdomain(DOM0, 1),
        lambda: channels.bind_unbound_port(puppet.domid),
    ):
        with pytest.raises(OSError) as e:
            bind()
        assert e.value.errno == errno.EACCES


def test_closed_channels(channels: EventChannels) -> None:
    channels.close()
    with pytest.raises(OSError, match="EventChannels is closed") as e:
        channels.fileno()
    assert e.value.errno == errno.EBADF


def test_values_and_names(store: Store, other: Store) -> None:
    assert store.read(f"{TOP}/a") is None
    store.write(f"{TOP}/a", b"\0any\xff\0bytes")
    store.write(f"{TOP}/b/c", b"")
    store.make_directory(f"{TOP}/d")
    store.make_directory(f"{TOP}/a")
    assert other.read(f"{TOP}/a") == b"\0any\xff\0bytes"
    assert other.read(f"{TOP}/b/c") == b""
    assert sorted(other.list(TOP)) == ["a", "b", "d"]
    assert other.list(f"{TOP}/d") == ()
    store.remove(f"{TOP}/b")
    store.remove(f"{TOP}/b")
    assert sorted(other.list(TOP)) == ["a", "d"]


def test_errors_say_what_was_tried(store: Store) -> None:
    store.write(f"{TOP}/a", b"1")
    for use, code in [
        (lambda: store.list(f"{TOP}/none"), errno.ENOENT),
        (lambda: store.permissions(f"{TOP}/none"), errno.ENOENT),
        (lambda: store.set_permissions(f"{TOP}/none", [(0, Access.NONE)]), errno.ENOENT),
        (lambda: store.read(f"{TOP}/no name"), errno.EINVAL),
        (lambda: store.write(f"{TOP}/no name", b""), errno.EINVAL),
        (lambda: store.make_directory(f"{TOP}//name"), errno.EINVAL),
        (lambda: store.remove(f"{TOP}/none/none"), errno.ENOENT),
        (lambda: store.write(f"{TOP}/a", bytes(5000)), errno.E2BIG),
        (lambda: store.unwatch(TOP, "none"), errno.ENOENT),
    ]:
        with pytest.raises(OSError, match=f"{TOP}.* (in|of) xenstore|in xenstore") as e:
            use()
        assert e.value.errno == code, str(e.value)
    with pytest.raises(ValueError, match="no name in xenstore"):
        store.read(f"{TOP}/a\0b")


def test_permissions(store: Store, puppet: Puppet) -> None:
    store.write(f"{TOP}/a", b"1")
    for wanted in [
        (Permission(DOM0, Access.READ | Access.WRITE),),
        (Permission(DOM0, Access.NONE), Permission(puppet.domid, Access.READ)),
        (Permission(puppet.domid, Access.NONE), Permission(DOM0, Access.WRITE)),
    ]:
        store.set_permissions(f"{TOP}/a", wanted)
        assert store.permissions(f"{TOP}/a") == wanted
    with pytest.raises(OSError, match="cannot set the permissions") as e:
        store.set_permissions(f"{TOP}/a", [(NO_DOMAIN, Access.NONE)])
    assert e.value.errno == errno.ENOENT


def test_where_domains_are(store: Store) -> None:
    assert store.domain_path(7) == "/local/domain/7"


def test_a_watch_fires_at_once_and_at_changes(store: Store, other: Store) -> None:
    store.watch(TOP, "the token")
    assert store.read_watch(PATIENCE) == (TOP, "the token")
    assert store.read_watch(0) is None
    assert not readable(store)
    other.write(f"{TOP}/a/b", b"1")
    assert readable(store, PATIENCE)
    event = store.read_watch()
    assert event is not None
    assert (event.path, event.token) == (f"{TOP}/a/b", "the token")
    with pytest.raises(OSError, match="cannot watch") as e:
        store.watch(TOP, "the token")
    assert e.value.errno == errno.EEXIST
    store.unwatch(TOP, "the token")
    other.write(f"{TOP}/a/b", b"2")
    assert store.read_watch(0.2) is None


def test_waiting_for_a_watch(store: Store, other: Store) -> None:
    store.watch(TOP, "t")
    assert store.read_watch(PATIENCE) is not None
    timer = threading.Timer(0.2, lambda: other.write(f"{TOP}/late", b"1"))
    timer.start()
    assert store.read_watch() == (f"{TOP}/late", "t")
    timer.join()
    start = time.monotonic()
    assert store.read_watch(0.3) is None
    assert time.monotonic() - start >= 0.3


def test_a_signal_interrupts_waiting_for_a_watch(store: Store) -> None:
    def interrupt(*_: object) -> None:
        raise InterruptedError("a signal")

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(InterruptedError, match="a signal"):
            store.read_watch(PATIENCE)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_transaction_is_done_as_one(store: Store, other: Store) -> None:
    with store.transaction() as transaction:
        transaction.write(f"{TOP}/a", b"1")
        transaction.write(f"{TOP}/b", b"2")
        assert transaction.read(f"{TOP}/a") == b"1"
        assert other.read(f"{TOP}/a") is None
    assert (other.read(f"{TOP}/a"), other.read(f"{TOP}/b")) == (b"1", b"2")
    with pytest.raises(OSError, match="the xenstore transaction is over"):
        transaction.read(f"{TOP}/a")


def test_a_transaction_that_raises_is_abandoned(store: Store) -> None:
    with pytest.raises(RuntimeError, match="changed my mind"), store.transaction() as transaction:
        transaction.write(f"{TOP}/a", b"1")
        raise RuntimeError("changed my mind")
    assert store.read(f"{TOP}/a") is None


def test_a_transaction_that_somebody_interferes_with_is_refused(store: Store, other: Store) -> None:
    store.write(f"{TOP}/a", b"1")
    with pytest.raises(BlockingIOError), store.transaction() as transaction:
        value = transaction.read(f"{TOP}/a")
        assert value is not None
        other.write(f"{TOP}/a", b"5")
        transaction.write(f"{TOP}/a", b"%d" % (int(value) + 1))
    assert store.read(f"{TOP}/a") == b"5"
