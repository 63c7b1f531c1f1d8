# SPDX-License-Identifier: Apache-2.0
"""What the parts of a state hold, for people: the fields that go into a stream beside the raw bytes."""

from __future__ import annotations

from collections.abc import Mapping

from vmm.arch import ARCHITECTURE
from vmm.state.architecture import of
from vmm.state.value import Part

__all__ = ["explain"]


def explain(arch: str, name: str, parts: Mapping[str, Part]) -> Mapping[str, str | int]:
    """Return a part's registers or fields by name; nothing for another architecture than the running one."""
    if arch != ARCHITECTURE:
        return {}
    part = parts[name]
    for piece in of(arch).PIECES:
        if piece.name == name:
            return piece.describe(part, parts)
    return of(arch).describe_machine(name, part)
