# SPDX-License-Identifier: Apache-2.0
"""Ways through KVM: a vCPU with unusual values in every field goes one, and every field is looked at behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from vmm.conformance.expect import judged
from vmm.conformance.world.tally import NO_ROW, Tally
from vmm.kvm.ioctl import KvmError, Refused
from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import here
from vmm.state.value import Part
from vmm.state.vcpu import read_pieces
from vmm.state.world.row import After, Allowed, Fresh, Made, Number, Row, Untold, fits, wanted
from vmm.state.world.table import Table

__all__ = ["Becomes", "Event", "Traveller", "initialised", "initialised_in_run", "run"]

# What becomes of a field.
Becomes = After | Made | Number | Allowed | Untold
# What an event makes of the fields of a row; None is a field of which nothing is said.
Event = Callable[[Row], Becomes | None]


def initialised_in_run(row: Row) -> Becomes | None:
    """What INIT makes of a field that KVM_RUN takes in: what INIT keeps the run may change."""
    return row.kept if row.init is After.KEPT else row.init


def run(row: Row) -> Becomes:
    """What a KVM_RUN makes of a field that the guest does not touch."""
    return row.kept


def initialised(row: Row) -> Becomes | None:
    """What INIT makes of a field."""
    return row.init


class Traveller:
    """A vCPU that goes ways, with what its fields were before. Their names have that of the piece: ``REGS.rax``.

    ``tables`` are written in this order; ``views``, which show the same state again, are only looked at.
    """

    def __init__(self, vcpu: Vcpu, tables: Sequence[Table], tally: Tally, views: Sequence[Table] = ()) -> None:
        self.vcpu, self.tally = vcpu, tally
        self.before: dict[str, int] = {}
        self._meant: dict[str, tuple[Table, str, int]] = {}
        # Each with its name and the row that its piece has of it.
        self._fields: list[tuple[str, str, str, Row]] = []
        self._written, self._tables = tables, sorted([*tables, *views], key=_in_capture)

    def settle(self, round: int) -> None:
        """Give every field a value of that round with which a guest runs.

        One that KVM does not take is left as it is: the property ``kept`` judges that.
        """
        self._meant = {}
        parts = read_pieces(self.vcpu, [table.piece for table in self._written])
        for table in self._written:
            if table.piece.name not in parts:
                continue
            part = parts[table.piece.name]
            values = table.values(table.codec.split(part), self.vcpu, round, running=True)
            taken = values if _taken(table, self.vcpu, part, values) else _singly(table, self.vcpu, part, values)
            self._meant |= {f"{table.piece.name}.{field}": (table, field, value) for field, value in taken.items()}
        self._look()

    def _look(self) -> None:
        """Remember every field as it is, with its row; those that this vCPU lacks are told as such."""
        tables = {table.piece.name: table for table in self._tables}
        self.before, self._fields = {}, []
        for piece, fields in self._read().items():
            for field, value in fields.items():
                name = f"{piece}.{field}"
                self.before[name] = value
                found = tables[piece].of(self.vcpu, field)
                if found is None or found[0]:
                    self.tally.untold(name, NO_ROW if found is None else found[0])
                else:
                    self._fields.append((name, piece, field, found[1]))

    def judge_settled(self, shared: Mapping[str, Callable[[Mapping[str, int]], int]]) -> None:
        """Look whether every field was read as it was written, beside all others.

        ``shared`` fields are what others make of them that were written later. One that is lost when it is written by
        itself, too, is a matter of the property ``kept``.
        """
        for name, (table, field, value) in self._meant.items():
            told = shared[name](self.before) if name in shared else table.expected(field, value)
            if name in shared or fits(self.before.get(name), told) or _keeps(table, self.vcpu, field, value):
                self.tally.look(name, "as written, beside all other fields", self.before.get(name), told)
            else:
                self.tally.untold(name, f"it is lost when it is written by itself: world.{table.title}-kept")

    def read(self) -> dict[str, int]:
        """Return every field as it is now."""
        return {f"{name}.{field}": value for name, fields in self._read().items() for field, value in fields.items()}

    def _read(self, without: Iterable[str] = ()) -> dict[str, dict[str, int]]:
        """Return the fields of every piece, in the order in which state is saved; ``without`` names pieces."""
        codecs = {table.piece: table.codec for table in self._tables if table.piece.name not in without}
        parts = read_pieces(self.vcpu, codecs)
        return {piece.name: codec.split(parts[piece.name]) for piece, codec in codecs.items() if piece.name in parts}

    def judge(
        self,
        where: str,
        becomes: Mapping[str, Becomes] | None = None,
        event: Event = run,
        without: Iterable[str] = (),
    ) -> None:
        """Look at every field: it has become what ``becomes`` says or, without that, what the event makes of its row.

        ``without`` names pieces that are not read.
        """
        with judged(f"reading the state {where}"):
            now = self._read(without)
        for name, piece, field, row in self._fields:
            if piece in without:
                continue
            told = self._wanted(name, row, (becomes or {}).get(name, event(row)))
            if isinstance(told, Untold):
                self.tally.untold(name, told.reason)
            elif told is not None:
                self.tally.look(name, where, now.get(piece, {}).get(field), told)

    def _wanted(self, name: str, row: Row, becomes: Becomes | None) -> Fresh:
        if becomes is After.KEPT:
            return self.before[name]
        told = row.freshly(self.vcpu) if becomes is After.FRESH else becomes
        if isinstance(told, Made):
            return told.function(self.before[name])
        if isinstance(told, Untold) or told is None:
            return told
        assert not isinstance(told, After)
        return wanted(told, self.vcpu)


def _in_capture(table: Table) -> int:
    order = here().CAPTURE_ORDER
    return order.index(table.piece.name) if table.piece.name in order else len(order)


def _taken(table: Table, vcpu: Vcpu, part: Part, values: Mapping[str, int]) -> bool:
    try:
        if values:
            table.write(vcpu, values, part)
    except (KvmError, Refused):
        return False
    return True


def _singly(table: Table, vcpu: Vcpu, part: Part, values: Mapping[str, int]) -> dict[str, int]:
    """Write one field after the other, in a structure beside those that were taken before it; return those."""
    found: dict[str, int] = {}
    for field, value in values.items():
        beside = found if isinstance(part, bytes) else {}
        if _taken(table, vcpu, part, {**beside, field: value}):
            found[field] = value
    return found


def _keeps(table: Table, vcpu: Vcpu, field: str, value: int) -> bool:
    """Write a field by itself, and tell whether it is read back then."""
    part = table.part(vcpu)
    return (
        part is not None
        and _taken(table, vcpu, part, {field: value})
        and fits(table.read(vcpu).get(field), table.expected(field, value))
    )
