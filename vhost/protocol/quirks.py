# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where peers differ from the specification on the wire, and what is done about each: the one table.

Every field of :class:`Quirks` is a row and a switch. Rows that are on by default only widen what is read;
what is written follows the specification unless an opt-in row says otherwise.

Sources: rv is rust-vmm/vhost 4e217d99 (vhost 0.16.0), lvu is QEMU's libvhost-user (42cedf0e), DPDK is
38f72e50, yc is yandex-cloud/yc-libvhost-server b0e01de9, crosvm is f1e797a6, xvf is
vireshk/xen-vhost-frontend 66ee282d.
"""

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

__all__ = ("Quirks", "Quirk", "describe", "table")


class Quirk(NamedTuple):
    """One row: who differs, how, where that can be read, and what the switch does."""

    peer: str
    differs: str
    source: str
    action: str


def _row(default: bool, *, peer: str, differs: str, source: str, action: str) -> Any:
    return field(default=default, metadata={"quirk": Quirk(peer, differs, source, action)})


@dataclass(frozen=True, slots=True)
class Quirks:
    """Switches for the deviations of peers; ``Quirks()`` is what to use with an unknown peer.

    A user names a row as its field, with hyphens or with underscores.
    """

    # ---- reading, on by default ---
    inflight_20: bool = _row(
        True,
        peer="implementations of the specification's table",
        differs="the inflight description has 20 bytes, in C structures (QEMU, lvu, DPDK) it has 24",
        source="vhost-user.rst «Inflight description»; lvu and DPDK demand size == 24",
        action="write 24, read 20 and 24",
    )
    full_mem_table: bool = _row(
        True,
        peer="front-ends that send their C structure; user-mode Linux 6.12 (72 bytes for one region)",
        differs="SET_MEM_TABLE carries more regions than it counts, up to the array of 8",
        source="vhost-user.rst «Multiple Memory regions description»",
        action="write the regions used, read any number from them to 8",
    )
    many_regions: bool = _row(
        True,
        peer="rust-vmm front-ends (xvf in grant mode)",
        differs="SET_MEM_TABLE with up to 32 regions and descriptors, the specification ends at 8",
        source="rv message.rs:52; xvf mmio.rs:331-385",
        action="write 8, read 32",
    )
    rem_mem_reg_fd: bool = _row(
        True,
        peer="older QEMU front-ends",
        differs="REM_MEM_REG comes with a descriptor",
        source="rv backend_req_handler.rs:946 refuses it; lvu vu_rem_mem_reg takes at most one",
        action="write none, read one and close it",
    )
    repeated_regions: bool = _row(
        True,
        peer="QEMU before 8.0, network devices with several pairs of queues",
        differs="each pair adds and removes all regions for itself, so one region comes several times",
        source="vhost_user_one_time_request() of QEMU 7.2's hw/virtio/vhost-user.c names neither message",
        action="let ADD_MEM_REG say again what is there, and REM_MEM_REG follow as often",
    )
    log_base_reply: bool = _row(
        True,
        peer="DPDK, lvu, yc",
        differs="the answer to SET_LOG_BASE has 0, 8 or 16 bytes",
        source="DPDK vhost_user.c after vhost_user_set_log_base; rv frontend.rs:279 insists on 16",
        action="write 16, read any size",
    )
    config_error_header: bool = _row(
        True,
        peer="rust-vmm back-ends",
        differs="a failed GET_CONFIG is answered with the 12 byte header and size 0, not with nothing",
        source="rv backend_req_handler.rs:824,828",
        action="write nothing, read both as failure",
    )
    shared_object_echo: bool = _row(
        True,
        peer="lvu",
        differs="the answer to GET_SHARED_OBJECT repeats the UUID; the specification names no payload",
        source="lvu vu_get_shared_object; vhost-user.rst «VHOST_USER_GET_SHARED_OBJECT»",
        action="write the UUID, read any size; the descriptor tells success",
    )
    xen_no_advance_map_8: bool = _row(
        True,
        peer="rust-vmm, xvf",
        differs="the NO_ADVANCE_MAP flag of Xen regions is 0x8, the specification says 0x100",
        source="vm-memory 6de1c4bc src/mmap/xen.rs:437",
        action="read 0x8 as 0x100",
    )
    # ---- opt-in: these change what is written, or the meaning of what is well-formed ---
    write_xen_no_advance_map_8: bool = _row(
        False,
        peer="rust-vmm back-ends",
        differs="they know only 0x8 as NO_ADVANCE_MAP",
        source="vm-memory 6de1c4bc src/mmap/xen.rs:437-455",
        action="write 0x100 as 0x8",
    )
    shmem_bit_21: bool = _row(
        False,
        peer="rust-vmm 0.16",
        differs="SHMEM is protocol feature bit 21, which is GPA_ADDRESSES; the specification says bit 22",
        source="rv message.rs:447; rust-vmm/vhost pull request 367",
        action="write bit 22 as bit 21 and read it back so; GPA_ADDRESSES cannot be negotiated",
    )
    set_config_flags: bool = _row(
        False,
        peer="rust-vmm and crosvm front-ends",
        differs="SET_CONFIG flags are 1 for a write and 2 for migration, the specification says 0 and 1",
        source="rv message.rs:843-845",
        action="read 1 as 0 and 2 as 1",
    )
    packed_base_16: bool = _row(
        False,
        peer="DPDK",
        differs="the base of a packed ring has its avail half only; the used half is zero and means the same",
        source="DPDK vhost_user.c:1053-1080, 2520-2545",
        action="read a used half of zero as the avail half",
    )
    queue_num_pairs: bool = _row(
        False,
        peer="network back-ends of DPDK",
        differs="the answer to GET_QUEUE_NUM counts pairs of queues",
        source="DPDK rte_vhost.h, rte_vhost_driver_set_max_queue_num(), which rte_eth_vhost.c calls",
        action="read the number as twice as many rings",
    )

    @classmethod
    def choose(cls, text: str) -> Self:
        """Those to use with an unknown peer, and what a user wrote down: ``packed-base-16,-many-regions``.

        A name switches a row on, with a minus in front off. Of two that contradict, the later one counts.

        :raises ValueError: there is no such row; the message lists those there are.
        """
        rows = table()
        chosen = {}
        for item in filter(None, map(str.strip, text.split(","))):
            off = item.startswith("-")
            name = item[off:].replace("-", "_")
            if name not in rows:
                raise ValueError(
                    f"there is no quirk {item[off:]!r}; there are {', '.join(map(_spell, rows))}"
                )
            chosen[name] = not off
        return cls(**chosen)


def table() -> dict[str, Quirk]:
    """All rows, by the name of the switch."""
    return {entry.name: entry.metadata["quirk"] for entry in fields(Quirks)}


def describe() -> str:
    """The table in words, a paragraph for each row: name, whether it is on, peer, difference, action."""
    default = Quirks()
    return "\n".join(
        f"{_spell(name)} ({'on' if getattr(default, name) else 'off'}), {row.peer}:\n"
        f"  {row.differs}\n"
        f"  on: {row.action}"
        for name, row in table().items()
    )


def _spell(name: str) -> str:
    return name.replace("_", "-")
