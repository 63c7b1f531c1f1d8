# SPDX-License-Identifier: Apache-2.0
"""From many inputs the few and small ones that reach as much of the package as all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import Any

import vmm
from tests.fuzz.targets import Target

__all__ = ["edges", "smallest"]

Edge = tuple[CodeType, int, int]
_PACKAGE = vmm.__path__[0]


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
    """Return inputs of ``most`` bytes in all at most, each with an edge that those before do not have.

    Small ones come first, so what a large one reaches is shown by small ones where that can be.
    """
    reached: set[Edge] = set()
    kept: list[bytes] = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        found = edges(target, data)
        if found - reached and len(data) <= most:
            most -= len(data)
            reached |= found
            kept.append(data)
    return kept
