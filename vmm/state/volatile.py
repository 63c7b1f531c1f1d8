# SPDX-License-Identifier: Apache-2.0
"""State that changes by itself (clocks, counters), so it is not compared: data files, each entry with its reason."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Volatile", "load"]

_HANDLINGS = ("free", "forward", "not-saved")


@dataclass(frozen=True, slots=True)
class Volatile:
    """One register (``*``: the whole part) and how it may differ.

    ``free``: in any way; ``forward``: it may not go back; ``not-saved``: it is not part of a state.
    ``mask`` limits that to some bits.
    """

    part: str
    register: str
    handling: str
    reason: str
    mask: int = ~0

    def excuses(self, ours: int, theirs: int) -> bool:
        """Tell whether this difference between two values is expected."""
        if (ours ^ theirs) & ~self.mask:
            return False
        return self.handling == "free" or (self.handling == "forward" and theirs >= ours)


@cache
def load(arch: str) -> dict[tuple[str, str], Volatile]:
    """Return an architecture's entries by part and register."""
    path = Path(__file__).parent / arch / "volatile.toml"
    found = {}
    for entry in tomllib.loads(path.read_text())["volatile"]:
        if entry["handling"] not in _HANDLINGS or not entry["reason"]:
            raise ValueError(f"{path.name}: {entry} has no reason or an unknown handling")
        found[entry["part"], entry["register"]] = Volatile(**entry)
    return found
