# SPDX-License-Identifier: Apache-2.0
"""Unusual values for every field that rows know of, and what a state with them was meant to be."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from vmm.kvm.vcpu import Vcpu
from vmm.state.value import Part
from vmm.state.world.row import fits
from vmm.state.world.table import Table

__all__ = ["unsettle"]


def unsettle(
    vcpu: Vcpu, tables: Iterable[Table], round: int, leave: Container[str] = ()
) -> dict[str, Callable[[Part], Part]]:
    """Write a round's values, table by table, and return what was meant, by piece.

    Fields in ``leave`` are left as they are, and so is one that KVM does not take: whether it has to is what the
    clauses look at.
    """
    meant: dict[str, Callable[[Part], Part]] = {}
    for table in tables:
        fields = {field: value for field, value in table.read(vcpu).items() if field not in leave}
        values = table.values(fields, vcpu, round)
        if values and (taken := table.give(vcpu, values)):
            meant[table.piece.name] = _meant(table, taken)
    return meant


def _meant(table: Table, values: Mapping[str, int]) -> Callable[[Part], Part]:
    """Return what makes of a part that was captured the one that was meant: a value that may read so is right."""

    def meant(part: Part) -> Part:
        found = table.codec.split(part)
        wanted = {field: _right(table, field, value, found.get(field)) for field, value in values.items()}
        joined = table.codec.join(part, wanted)
        return joined if isinstance(joined, bytes) or isinstance(part, bytes) else {**part, **joined}

    return meant


def _right(table: Table, field: str, value: int, found: int | None) -> int:
    expected = table.expected(field, value)
    if isinstance(expected, int):
        return expected
    return found if found is not None and fits(found, expected) else value
