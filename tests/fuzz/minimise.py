# SPDX-License-Identifier: Apache-2.0
"""From many inputs the few and small ones that reach as much of the package as all of them."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import Any

import vmm
from tests.fuzz.targets import Target

__all__ = ["edges", "smallest"]

Edge = tuple[CodeType, int, int]
_PACKAGE = vmm.__path__[0]
_FILE = 200  # bytes that a file is worth, however little is in it


def edges(target: Target, data: bytes) -> set[Edge]:
    """Return the steps from line to line that reading an input takes inside the package."""
    found: set[Edge] = set()

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        before, code = 0, frame.f_code

        def step(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal before
            found.add((code, before, frame.f_lineno))
            before = frame.f_lineno
            return step

        return step

    tracer = sys.gettrace()
    sys.settrace(enter)
    try:
        target.read(data)
    finally:
        sys.settrace(tracer)
    return found


def smallest(target: Target, inputs: Iterable[bytes], most: int) -> list[bytes]:
    """Return inputs of ``most`` bytes in all at most that reach as much as can be: each has an edge of its own.

    Next comes the one that has most new edges for its size.
    """
    numbers: dict[Edge, int] = {}
    waiting: list[tuple[float, bytes, int]] = []
    for data in set(inputs):
        found = sum(1 << numbers.setdefault(edge, len(numbers)) for edge in edges(target, data))
        waiting.append((-_worth(found, data), data, found))
    heapq.heapify(waiting)
    reached, kept = 0, list[bytes]()
    while waiting:
        _, data, found = heapq.heappop(waiting)
        worth = -_worth(found & ~reached, data)
        if worth >= 0 or len(data) > most:
            continue
        if waiting and worth > waiting[0][0]:  # others have become better: what it is worth only falls
            heapq.heappush(waiting, (worth, data, found))
            continue
        most -= len(data)
        reached |= found
        kept.append(data)
    return kept


def _worth(found: int, data: bytes) -> float:
    return found.bit_count() / (len(data) + _FILE)
