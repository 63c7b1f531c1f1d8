# SPDX-License-Identifier: Apache-2.0
"""The rows of one piece of state, found by the names of its fields; reading and writing the piece as fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from vmm.kvm.vcpu import Vcpu
from vmm.state.piece import Piece
from vmm.state.value import Part
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
    def rounds(self) -> int:
        """How many rounds of values there are."""
        found = [row.values.rounds for row in self.rows if row.values and not isinstance(row.values, Untold)]
        return max(found + [_VARIED for row in self.rows if row.varies], default=0)

    def expected(self, field: str, value: int) -> int | Allowed:
        """Return what a field may be read as after a value was written."""
        row = self.row(field)
        return row.read(value) if row else value

    # --- a vCPU's ---

    def part(self, vcpu: Vcpu) -> Part | None:
        """Return the piece of a vCPU; None if it has no such state. Raises KvmError."""
        return read_piece(vcpu, self.piece)

    def read(self, vcpu: Vcpu) -> dict[str, int]:
        """Return the fields of a vCPU's piece; none if it has no such state. Raises KvmError."""
        part = self.part(vcpu)
        return {} if part is None else self.codec.split(part)

    def write(self, vcpu: Vcpu, values: Mapping[str, int], part: Part | None = None) -> None:
        """Give fields other values, the rest of a structure stays. Raises KvmError, or Refused for an MSR.

        ``part`` is the piece as it is now, for who knows it.
        """
        part = self.part(vcpu) if part is None else part
        assert part is not None
        write_piece(vcpu, self.piece, self.codec.join(part, values))

    # --- what is written ---

    def values(self, fields: Iterable[str], vcpu: Vcpu, round: int, *, running: bool = False) -> dict[str, int]:
        """Return a round's values of those fields that may be written together; for a guest that runs, its own."""
        found = {}
        for field, row in self._writable(fields, vcpu):
            runs = row.runs if running else True
            if runs and not row.alone and (value := _fitting(row, runs, vcpu, field, round)) is not None:
                found[field] = value
        return found

    def alone(self, fields: Iterable[str], vcpu: Vcpu, round: int) -> Iterator[tuple[str, int]]:
        """Yield the fields that have to be written by themselves, each with its value of a round."""
        for field, row in self._writable(fields, vcpu):
            if row.alone and (value := _fitting(row, True, vcpu, field, round)) is not None:
                yield field, value

    def _writable(self, fields: Iterable[str], vcpu: Vcpu) -> Iterator[tuple[str, Row]]:
        known: dict[int, Row | None] = {}
        for field in fields:
            found = self.row(field)
            if found is None:
                continue
            if id(found) not in known:
                known[id(found)] = None if found.when(vcpu) else found.of(vcpu)
            row = known[id(found)]
            if row and row.values and not isinstance(row.values, Untold):
                yield field, row


def _fitting(row: Row, runs: bool | Values, vcpu: Vcpu, field: str, round: int) -> int | None:
    """Return a field's value of a round, or of those with which a guest runs, as this vCPU may have it."""
    assert row.values and not isinstance(row.values, Untold)
    values = row.values if isinstance(runs, bool) else runs
    return row.fit(vcpu, values.value(field, round))
