# SPDX-License-Identifier: Apache-2.0
"""What the parts of a state hold, for people: the fields that go into a stream beside the raw bytes."""

from __future__ import annotations

from collections.abc import Mapping

from vmm.arch import ARCHITECTURE
from vmm.state.architecture import pieces
from vmm.state.value import Part

__all__ = ["describe_machine", "explain"]


def explain(arch: str, name: str, parts: Mapping[str, Part]) -> Mapping[str, str | int]:
    """Return a part's registers or fields by name; nothing for another architecture than the running one."""
    if arch != ARCHITECTURE:
        return {}
    piece = pieces(arch).get(name)
    return piece.describe(parts[name], parts) if piece else describe_machine(name, parts[name])


def describe_machine(name: str, part: Part) -> dict[str, str]:
    """Return what a part of the VM holds: a number, or the capabilities that were enabled."""
    if isinstance(part, bytes):
        return {name: str(int.from_bytes(part, "little"))}
    return {f"capability {number}": value.hex() for number, value in part.items()}
