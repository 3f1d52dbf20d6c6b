# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Sizes and alignments of the parts of a virtqueue, split (virtio 1.3, 2.7) and packed (2.8)."""

from dataclasses import dataclass

__all__ = ("RingLayout",)

MAX_SIZE = 32768


@dataclass(frozen=True, slots=True)
class RingLayout:
    """What the three parts of a ring of ``size`` entries take, in bytes.

    A split ring has a descriptor table, an avail ring and a used ring; the lengths include ``used_event`` and
    ``avail_event``, which are there whether or not they are used. A packed ring has descriptors and, by the
    same
    names in vhost-user, the driver's and the device's event suppression.

    :raises ValueError: the size is out of range, or a split ring's is no power of two.
    """

    size: int
    packed: bool = False

    #: Alignment of the descriptors, in bytes.
    DESCRIPTOR_ALIGN = 16

    def __post_init__(self) -> None:
        if self.packed and not 0 < self.size <= MAX_SIZE:
            raise ValueError(f"ring size {self.size}: a packed ring has 1 to {MAX_SIZE} entries")
        if not self.packed and (not 0 < self.size <= MAX_SIZE or self.size & (self.size - 1)):
            raise ValueError(
                f"ring size {self.size}: a split ring has a power of two from 1 to {MAX_SIZE} entries"
            )

    @property
    def descriptor(self) -> int:
        """Bytes of the descriptors."""
        return 16 * self.size

    @property
    def avail(self) -> int:
        """Bytes of the avail ring, or of the driver's event suppression."""
        return 4 if self.packed else 6 + 2 * self.size

    @property
    def used(self) -> int:
        """Bytes of the used ring, or of the device's event suppression."""
        return 4 if self.packed else 6 + 8 * self.size

    @property
    def avail_align(self) -> int:
        """Alignment of the avail ring, or of the driver's event suppression, in bytes."""
        return 4 if self.packed else 2

    @property
    def used_align(self) -> int:
        """Alignment of the used ring, or of the device's event suppression, in bytes."""
        return 4
