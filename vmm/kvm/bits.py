# SPDX-License-Identifier: Apache-2.0
"""The set bits of a bitmap: KVM's dirty logs, state components, quirks."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["bits"]


def bits(value: int) -> Iterator[int]:
    """Yield the numbers of the set bits, lowest first."""
    while value:
        lowest = value & -value
        yield lowest.bit_length() - 1
        value ^= lowest
