# SPDX-License-Identifier: Apache-2.0
"""Ways through KVM: a vCPU with unusual values in every field goes one, and every field is looked at behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from vmm.conformance.expect import judged
from vmm.conformance.world.tally import NO_ROW, Tally
from vmm.kvm.ioctl import KvmError, Refused
from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import here
from vmm.state.value import Part
from vmm.state.vcpu import read_pieces, write_piece
from vmm.state.world.row import After, Allowed, Fresh, Made, Number, Row, Untold, wanted
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
        self._fields: list[tuple[str, str, Row]] = []
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
        self.before = self.read()
        self._fields = list(self._rows())

    def judge_settled(self, shared: Mapping[str, Callable[[Mapping[str, int]], int]]) -> None:
        """Look whether every field was read as it was written, beside all others.

        ``shared`` fields are what others make of them that were written later. One that is lost when it is written by
        itself, too, is a matter of the property ``kept``.
        """
        for name, (table, field, value) in self._meant.items():
            told = shared[name](self.before) if name in shared else table.expected(field, value)
            if name in shared or _is(self.before.get(name), told) or _keeps(table, self.vcpu, field, value):
                self.tally.look(name, "as written, beside all other fields", self.before.get(name), told)
            else:
                self.tally.untold(name, f"it is lost when it is written by itself: world.{table.title}-kept")

    def read(self, *, without: Iterable[str] = ()) -> dict[str, int]:
        """Return every field as it is now, in the order in which state is saved; ``without`` names pieces."""
        tables = [table for table in self._tables if table.piece.name not in without]
        parts = read_pieces(self.vcpu, [table.piece for table in tables])
        return {
            f"{table.piece.name}.{field}": value
            for table in tables
            if table.piece.name in parts
            for field, value in table.codec.split(parts[table.piece.name]).items()
        }

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
            now = self.read(without=without)
        for name, piece, row in self._fields:
            if piece in without:
                continue
            told = self._wanted(name, row, (becomes or {}).get(name, event(row)))
            if isinstance(told, Untold):
                self.tally.untold(name, told.reason)
            elif told is not None:
                self.tally.look(name, where, now.get(name), told)

    def _rows(self) -> Iterator[tuple[str, str, Row]]:
        """Yield each field that there is with its piece and row; those that this vCPU lacks are told as such."""
        tables = {table.piece.name: table for table in self._tables}
        known: dict[int, tuple[str, Row]] = {}
        for name in self.before:
            piece, field = name.split(".", 1)
            row = tables[piece].row(field)
            if row is None:
                self.tally.untold(name, NO_ROW)
                continue
            if id(row) not in known:
                known[id(row)] = row.when(self.vcpu), row.of(self.vcpu)
            absent, row = known[id(row)]
            if absent:
                self.tally.untold(name, absent)
            else:
                yield name, piece, row

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
            write_piece(vcpu, table.piece, table.codec.join(part, values))
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


def _is(observed: int | None, told: int | Allowed) -> bool:
    return observed is not None and (observed == told if isinstance(told, int) else told.allows(observed))


def _keeps(table: Table, vcpu: Vcpu, field: str, value: int) -> bool:
    """Write a field by itself, and tell whether it is read back then."""
    part = table.part(vcpu)
    return (
        part is not None
        and _taken(table, vcpu, part, {field: value})
        and _is(table.read(vcpu).get(field), table.expected(field, value))
    )
