# SPDX-License-Identifier: Apache-2.0
"""Several pieces of state as one table, for what is judged of all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmm.kvm.vcpu import Vcpu
from vmm.state.world.row import Row
from vmm.state.world.table import Table

__all__ = ["Joined"]


class Joined(Table):
    """Tables whose fields are called ``PIECE.FIELD``. A vCPU need not have all of the pieces."""

    def __init__(self, title: str, *tables: Table) -> None:
        self.title, self.tables = title, {table.name: table for table in tables}
        self.rows = tuple(row for table in tables for row in table.rows)

    @property
    def name(self) -> str:
        """Nothing: the fields' names say it."""
        return ""

    @property
    def label(self) -> str:
        """The names of the pieces."""
        *first, last = self.tables
        return f"{', '.join(first)} and {last}"

    def row(self, field: str) -> Row | None:
        """Return the row of a field."""
        table, rest = self.owner(field)
        return table.row(rest)

    def prepare(self) -> None:
        """Find the rows of the fields that are known."""
        for table in self.tables.values():
            table.prepare()

    def bits(self, field: str) -> int:
        """Return how many bits a field has."""
        table, rest = self.owner(field)
        return table.bits(rest)

    def owner(self, field: str) -> tuple[Table, str]:
        """Return the table of the piece that a field is of, and how it is called there."""
        piece, _, rest = field.partition(".")
        return self.tables[piece], rest

    def of(self, vcpu: Vcpu, field: str) -> tuple[str, Row] | None:
        """Return why a vCPU lacks a field, or nothing, and the field's row as it is for it; None if it has no row."""
        table, rest = self.owner(field)
        return table.of(vcpu, rest)

    def part(self, vcpu: Vcpu) -> Any:
        """Return the pieces that a vCPU has, by name; None if it has none. Raises KvmError."""
        found = {name: table.part(vcpu) for name, table in self.tables.items()}
        return {name: part for name, part in found.items() if part is not None} or None

    def split(self, part: Any) -> dict[str, int]:
        """Return the fields of all pieces."""
        return {
            f"{name}.{field}": value
            for name, own in part.items()
            for field, value in self.tables[name].split(own).items()
        }

    def write(self, vcpu: Vcpu, values: Mapping[str, int], part: Any = None) -> None:
        """Give fields other values, piece by piece. Raises KvmError, or Refused for an MSR."""
        by_piece: dict[str, dict[str, int]] = {}
        for field, value in values.items():
            piece, _, rest = field.partition(".")
            by_piece.setdefault(piece, {})[rest] = value
        for name, own in by_piece.items():
            self.tables[name].write(vcpu, own, None if part is None else part[name])
