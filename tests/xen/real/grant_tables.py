# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The figures of the benchmark of grants as tables, in Markdown."""

from collections.abc import Iterator
from typing import Any

__all__ = ("piece_tables", "request_tables")


def request_tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Of requests; ``/r`` is per request, ``/b`` per batch."""
    head = ("mode", "depth", "requests/s", "ratio", "requests/b", "maps/b", "maps/r", "pages/r", "copies/b")
    for write in (False, True):
        yield f"\n4 KiB random {'writes' if write else 'reads'}\n"
        yield row_of(*head, "segments/r", "system calls/r", "CPU/r")
        yield "|---|" + "---:|" * (len(head) + 2)
        for row in (row for row in rows if row["write"] == write):
            requests, batches = row["requests"], row["batches"]
            yield row_of(
                *(row["mode"], row["depth"], f"{row['rate']:,.0f}", f"{row['ratio']:.2f}"),
                *(
                    f"{requests / batches:.1f}",
                    f"{row['maps'] / batches:.2f}",
                    f"{row['maps'] / requests:.3f}",
                ),
                *(f"{row['pages'] / requests:.2f}", f"{row['copies'] / batches:.2f}"),
                *(f"{row['segments'] / requests:.2f}", f"{row['system_calls']:.2f}"),
                f"{row['cpu'] * 1e6:,.0f} µs",
            )


def piece_tables(figures: dict[str, Any]) -> Iterator[str]:
    """Of single batches, in microseconds."""
    yield "\nPieces of a batch: copied, and mapped and unmapped\n"
    yield row_of("pieces", "bytes", "device", "copy", "map", "ratio", "copy: calls", "map: calls", "ratio")
    yield "|---:|---:|---|" + "---:|" * 6
    for row in figures["pieces"]:
        times = {name: row[name] * 1e6 for name in ("copy", "map", "copy_calls", "map_calls")}
        yield row_of(
            *(row["number"], row["size"], "writes" if row["write"] else "reads"),
            *(f"{times['copy']:,.0f}", f"{times['map']:,.0f}", f"{times['copy'] / times['map']:.2f}"),
            *(f"{times['copy_calls']:,.0f}", f"{times['map_calls']:,.0f}"),
            f"{times['copy_calls'] / times['map_calls']:.2f}",
        )
    yield "\nBoth directions, of that many KiB each: two map calls, or one and copies\n"
    yield row_of("KiB", "copied are", "two maps", "copies", "ratio")
    yield "|---:|---|" + "---:|" * 3
    for row in figures["directions"]:
        yield row_of(
            *(row["size"] // 1024, "written" if row["write"] else "read"),
            *(f"{row['two'] * 1e6:,.0f}", f"{row['one'] * 1e6:,.0f}", f"{row['one'] / row['two']:.2f}"),
        )
    own = {name: value * 1e6 for name, value in figures["own"].items()}
    yield f"\nOne access by system calls: {own['access']:,.0f} µs, of them {own['python']:,.0f} µs in Python"


def row_of(*cells: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"
