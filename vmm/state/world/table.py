# SPDX-License-Identifier: Apache-2.0
"""The rows of one piece of state, found by the names of its fields; reading and writing the piece as fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

from vmm.kvm.ioctl import KvmError, Refused
from vmm.kvm.vcpu import Vcpu
from vmm.state.piece import Piece
from vmm.state.vcpu import read_piece, write_piece
from vmm.state.world.fields import Codec
from vmm.state.world.row import Allowed, Row, Untold, Values

__all__ = ["Table"]

_WILD = frozenset("*?[")
# Rounds for values that depend on the vCPU: those of Free.
_VARIED = 4


class Table:
    """One piece of state with its rows. Of two rows that match a field the first counts.

    ``title`` is how the piece is called in the ids of clauses.
    """

    def __init__(self, title: str, piece: Piece, codec: Codec, rows: Sequence[Row]) -> None:
        self.title, self.piece, self.codec, self.rows = title, piece, codec, tuple(rows)
        named = [(pattern, row) for row in rows for pattern in row.fields.split()]
        self._exact = {pattern: row for pattern, row in reversed(named) if not _WILD.intersection(pattern)}
        self._patterns = [(pattern, row) for pattern, row in named if _WILD.intersection(pattern)]
        self._found: dict[str, Row | None] = {}
        # Each vCPU's rows, as long as its CPUID is the same.
        self._of: WeakKeyDictionary[Vcpu, dict[tuple[int, bytes | None], tuple[str, Row]]] = WeakKeyDictionary()

    def row(self, field: str) -> Row | None:
        """Return the row of a field; None if there is none, which is a fault of the table."""
        if field not in self._found:
            self._found[field] = self._exact.get(field) or self._matching(field)
        return self._found[field]

    def prepare(self) -> None:
        """Find the rows of the fields that are known, which takes longer than all else: once for many processes."""
        for field in self.codec.names():
            self.row(field)

    def _matching(self, field: str) -> Row | None:
        return next((row for pattern, row in self._patterns if fnmatchcase(field, pattern)), None)

    @property
    def name(self) -> str:
        """What its fields are of, as a finding shows it."""
        return self.piece.name

    @property
    def label(self) -> str:
        """What its fields are of, in a sentence."""
        return self.piece.name

    @property
    def rounds(self) -> int:
        """How many rounds of values there are."""
        found = [row.values.rounds for row in self.rows if row.values and not isinstance(row.values, Untold)]
        return max(found + [_VARIED for row in self.rows if row.varies], default=0)

    def expected(self, field: str, value: int) -> int | Allowed:
        """Return what a field may be read as after a value was written."""
        row = self.row(field)
        return row.read(value) if row else value

    def bits(self, field: str) -> int:
        """Return how many bits a field has."""
        return self.codec.bits(field)

    def owner(self, field: str) -> tuple[Table, str]:
        """Return the table of the one piece that a field is of, and how it is called there."""
        return self, field

    # --- a vCPU's ---

    def part(self, vcpu: Vcpu) -> Any:
        """Return the piece of a vCPU; None if it has no such state. Raises KvmError."""
        return read_piece(vcpu, self.piece)

    def read(self, vcpu: Vcpu) -> dict[str, int]:
        """Return the fields of a vCPU's piece; none if it has no such state. Raises KvmError."""
        part = self.part(vcpu)
        return {} if part is None else self.split(part)

    def split(self, part: Any) -> dict[str, int]:
        """Return the fields of what ``part`` has returned."""
        return self.codec.split(part)

    def write(self, vcpu: Vcpu, values: Mapping[str, int], part: Any = None) -> None:
        """Give fields other values, the rest of a structure stays. Raises KvmError, or Refused for an MSR.

        ``part`` is the piece as it is now, for who knows it.
        """
        part = self.part(vcpu) if part is None else part
        assert part is not None
        write_piece(vcpu, self.piece, self.codec.join(part, values))

    def give(
        self,
        vcpu: Vcpu,
        values: Mapping[str, int],
        refused: Callable[[str, KvmError | Refused], None] = lambda field, error: None,
    ) -> dict[str, int]:
        """Write fields together or, if KVM refuses that, one by one; return those that it took.

        ``refused`` is told each of the others.
        """
        try:
            self.write(vcpu, values)
        except (KvmError, Refused):
            return {field: value for field, value in values.items() if self._takes(vcpu, field, value, refused)}
        return dict(values)

    def _takes(self, vcpu: Vcpu, field: str, value: int, refused: Callable[[str, KvmError | Refused], None]) -> bool:
        try:
            self.write(vcpu, {field: value})
        except (KvmError, Refused) as error:
            refused(field, error)
            return False
        return True

    def of(self, vcpu: Vcpu, field: str) -> tuple[str, Row] | None:
        """Return why a vCPU lacks a field, or nothing, and the field's row as it is for it; None if it has no row."""
        row = self.row(field)
        if row is None:
            return None
        key = id(row), vcpu.chosen.get("CPUID")
        known = self._of.setdefault(vcpu, {})
        if key not in known:
            known[key] = row.when(vcpu), row.of(vcpu)
        return known[key]

    # --- what is written ---

    def values(self, fields: Mapping[str, int], vcpu: Vcpu, round: int, *, running: bool = False) -> dict[str, int]:
        """Return a round's values of those fields that may be written together; for a guest that runs, its own.

        ``fields`` are the fields of a vCPU with what they are in a fresh one.
        """
        return dict(self._of_round(fields, vcpu, round, running=running, alone=False))

    def alone(self, fields: Mapping[str, int], vcpu: Vcpu, round: int) -> Iterator[tuple[str, int]]:
        """Return the fields that have to be written by themselves, each with its value of a round."""
        return self._of_round(fields, vcpu, round, running=False, alone=True)

    def _of_round(
        self, fields: Mapping[str, int], vcpu: Vcpu, round: int, *, running: bool, alone: bool
    ) -> Iterator[tuple[str, int]]:
        for field, row in self._writable(fields, vcpu):
            values = _values(row, row.runs if running else True)
            if values is not None and row.alone is alone:
                value = row.fit(vcpu, values.value(field, round), fields[field])
                if value is not None:
                    yield field, value

    def _writable(self, fields: Iterable[str], vcpu: Vcpu) -> Iterator[tuple[str, Row]]:
        for field in fields:
            found = self.of(vcpu, field)
            if found is None:
                continue
            absent, row = found
            if not absent and row.values and not isinstance(row.values, Untold):
                yield field, row


def _values(row: Row, runs: bool | Values) -> Values | None:
    """Return the values of a row, or those with which a guest runs; None if it has none."""
    if not isinstance(runs, bool):
        return runs
    return row.values if runs and row.values and not isinstance(row.values, Untold) else None
