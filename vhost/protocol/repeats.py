# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Regions that a front-end adds, and therefore removes, more than once: see Quirks.repeated_regions."""

from .quirks import Quirks
from .regions import MemoryRegion

__all__ = ("RegionRepeats",)


class RegionRepeats:
    """Which of a connection's ADD_MEM_REG and REM_MEM_REG repeat what was said before.

    :param limit: of the regions that it remembers.
    """

    __slots__ = ("_quirks", "_limit", "_owed")

    def __init__(self, quirks: Quirks, limit: int) -> None:
        self._quirks = quirks
        self._limit = limit
        # Removals that are still to come, by what REM_MEM_REG tells regions apart.
        self._owed: dict[tuple[int, int, int], int] = {}

    def added(self, region: MemoryRegion) -> bool:
        """ADD_MEM_REG for a region that is there.

        :returns: whether that is a repetition, and no mistake.
        """
        key = _key(region)
        owed = self._owed.get(key, 0)
        if not self._quirks.repeated_regions or (not owed and len(self._owed) == self._limit):
            return False
        self._owed[key] = owed + 1
        return True

    def removed(self, region: MemoryRegion) -> bool:
        """REM_MEM_REG for a region that is not there.

        :returns: whether that is a repetition, and no mistake.
        """
        key = _key(region)
        owed = self._owed.pop(key, 0)
        if owed > 1:
            self._owed[key] = owed - 1
        return owed > 0

    def clear(self) -> None:
        """SET_MEM_TABLE: all that was added before is forgotten."""
        self._owed.clear()


def _key(region: MemoryRegion) -> tuple[int, int, int]:
    return region.guest_addr, region.size, region.user_addr
