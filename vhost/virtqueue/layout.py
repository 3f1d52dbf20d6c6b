# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Sizes and alignments of the parts of a virtqueue (virtio 1.3, 2.7 and 2.8)."""

from dataclasses import dataclass

__all__ = ("RingLayout", "PackedLayout")

MAX_SIZE = 32768


@dataclass(frozen=True, slots=True)
class RingLayout:
    """What the three parts of a split ring of ``size`` entries take, in bytes.

    The lengths include ``used_event`` and ``avail_event``: they are there whether or not they are used.
    """

    size: int

    #: Alignment of the descriptor table, the avail ring and the used ring, in bytes.
    DESCRIPTOR_ALIGN = 16
    AVAIL_ALIGN = 2
    USED_ALIGN = 4

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_SIZE or self.size & (self.size - 1):
            raise ValueError(
                f"ring size {self.size}: a split ring has a power of two from 1 to {MAX_SIZE} entries"
            )

    @property
    def descriptor(self) -> int:
        """Bytes of the descriptor table."""
        return 16 * self.size

    @property
    def avail(self) -> int:
        """Bytes of the avail ring."""
        return 6 + 2 * self.size

    @property
    def used(self) -> int:
        """Bytes of the used ring."""
        return 6 + 8 * self.size


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """What the three parts of a packed ring of ``size`` entries take, in bytes.

    They have the names of those of a split ring in whose place messages name them: ``avail`` is what the
    driver writes about events, ``used`` what the device writes.
    """

    size: int

    #: Alignment of the ring and the two event suppression structures, in bytes.
    DESCRIPTOR_ALIGN = 16
    AVAIL_ALIGN = 4
    USED_ALIGN = 4

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_SIZE:
            raise ValueError(f"ring size {self.size}: a packed ring has 1 to {MAX_SIZE} entries")

    @property
    def descriptor(self) -> int:
        """Bytes of the ring."""
        return 16 * self.size

    @property
    def avail(self) -> int:
        """Bytes of the driver's event suppression structure."""
        return 4

    @property
    def used(self) -> int:
        """Bytes of the device's event suppression structure."""
        return 4
