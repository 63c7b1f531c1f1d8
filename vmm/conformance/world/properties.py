# SPDX-License-Identifier: Apache-2.0
"""What is judged of every field: its value in a fresh vCPU, what is written, what is refused, what comes over.

Each property is a function of the architecture's ground, a table of rows and a clause's context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vmm.conformance.context import Context
from vmm.conformance.expect import judged
from vmm.conformance.world.excused import excused
from vmm.conformance.world.ground import Ground
from vmm.conformance.world.tally import NO_ROW, Tally
from vmm.kvm.ioctl import KvmError, Refused, errno_name
from vmm.kvm.vcpu import Vcpu
from vmm.state.vcpu import capture_vcpu, restore_vcpu
from vmm.state.world.row import OneOf, Refusal, Row, Untold, number
from vmm.state.world.table import Table

__all__ = ["fresh", "kept", "moved", "refused", "started"]


@contextmanager
def started(ground: Ground, table: Table, context: Context) -> Iterator[tuple[Vcpu, dict[str, int], Tally]]:
    """Give a new vCPU, the fields of the piece as they are in it, and who counts what is judged of them."""
    vcpu = ground.vcpu(context)
    with judged(f"reading {table.piece.name} of a fresh vCPU"):
        found = table.read(vcpu)
    if not found:
        context.skip(f"this KVM has no {table.piece.name} ({table.piece.get})")
    with Tally(context, table.piece.name) as tally:
        yield vcpu, found, tally


def _rows(table: Table, vcpu: Vcpu, fields: Mapping[str, int], tally: Tally) -> Iterator[tuple[str, Row]]:
    """Yield each field with its row; those that this vCPU has only by name are told as such."""
    for field in fields:
        row = table.row(field)
        if row is None:
            tally.untold(field, NO_ROW)
        elif absent := row.when(vcpu):
            tally.untold(field, absent)
        else:
            yield field, row


def fresh(ground: Ground, table: Table, context: Context) -> None:
    """Every field of a fresh vCPU has the value that its reset gives it."""
    with started(ground, table, context) as (vcpu, found, tally):
        for field, row in _rows(table, vcpu, found, tally):
            if isinstance(row.fresh, Untold):
                tally.untold(field, row.fresh.reason)
            elif row.fresh is not None:
                wanted = row.fresh if isinstance(row.fresh, OneOf) else number(row.fresh, vcpu)
                tally.look(field, "in a fresh vCPU", found[field], wanted)


def _written(table: Table, vcpu: Vcpu, values: Mapping[str, int], tally: Tally, where: str) -> bool:
    """Write fields together. If KVM refuses that, find out which it is by writing them one by one."""
    try:
        table.write(vcpu, values)
    except (KvmError, Refused):
        for field, value in values.items():
            try:
                table.write(vcpu, {field: value})
            except (KvmError, Refused) as error:
                tally.wrong(field, f"{where} = {value:#x}", _why(error), "success")
        return False
    return True


def _why(error: KvmError | Refused) -> str:
    return f"{error.call} failed with {error.errno_name}" if isinstance(error, KvmError) else "KVM does not take it"


def kept(ground: Ground, table: Table, context: Context) -> None:
    """Every value that a field may have is taken, and read back by the same call; what is masked reads as it must."""
    with started(ground, table, context) as (vcpu, found, tally):
        for field, row in _rows(table, vcpu, found, tally):
            if isinstance(row.values, Untold):
                tally.untold(field, row.values.reason)
        for round in range(table.rounds):
            meant = table.values(found, vcpu, round)
            _exchange(table, vcpu, meant, tally, "as written")
            for field, row in table.alone(found, vcpu):
                assert row.values and not isinstance(row.values, Untold)
                _exchange(table, vcpu, {field: row.values.value(field, round)}, tally, "as written")
        for field, row in _rows(table, vcpu, found, tally):
            for given, then in row.masked:
                if _written(table, vcpu, {field: given}, tally, "as written"):
                    read = table.read(vcpu).get(field)
                    tally.look(field, f"after {given:#x} was written", read, number(then, vcpu))
        if context.options.exhaustive:
            context.coverage["excused"] = excused(table, ground.vcpu(context), found)


def _exchange(table: Table, vcpu: Vcpu, meant: Mapping[str, int], tally: Tally, where: str) -> None:
    if meant and _written(table, vcpu, meant, tally, where):
        _compare(table, table.read(vcpu), meant, tally, where)


def _compare(table: Table, read: Mapping[str, int], meant: Mapping[str, int], tally: Tally, where: str) -> None:
    for field, value in meant.items():
        tally.look(field, where, read.get(field), table.expected(field, value))


def refused(ground: Ground, table: Table, context: Context) -> None:
    """What a field may not be is refused, and then nothing has changed."""
    with started(ground, table, context) as (vcpu, found, tally):
        table.write(vcpu, table.values(found, vcpu, 0))
        before = _steady(table, table.read(vcpu))
        for field, row in _rows(table, vcpu, found, tally):
            for refusal in row.refused:
                if _refuse(table, vcpu, field, refusal, tally, context):
                    where = f"after {field} = {number(refusal.value, vcpu):#x} was refused"
                    _compare(table, table.read(vcpu), before, tally, where)
                else:
                    before = _steady(table, table.read(vcpu))


def _steady(table: Table, read: Mapping[str, int]) -> dict[str, int]:
    """Leave out what counts by itself, as a clock does: not even its first value is told."""
    rows = ((field, value, table.row(field)) for field, value in read.items())
    return {field: value for field, value, row in rows if row is None or not isinstance(row.fresh, Untold)}


def _refuse(table: Table, vcpu: Vcpu, field: str, refusal: Refusal, tally: Tally, context: Context) -> bool:
    """Write what has to be refused; return whether it was."""
    value = number(refusal.value, vcpu)
    where = f"= {value:#x}"
    wanted = errno_name(refusal.errno) if refusal.errno else "KVM does not set it"
    try:
        table.write(vcpu, {field: value})
    except Refused:
        tally.judged(field)
    except KvmError as error:
        tally.judged(field)
        if error.errno != refusal.errno:
            context.drift(f"{table.piece.name}.{field} {where}: {error.errno_name} and not {wanted}")
    else:
        tally.wrong(field, where, "success", wanted)
        return False
    return True


def moved(ground: Ground, table: Table, context: Context) -> None:
    """Every value that a field may have comes over to a new vCPU with the rest of the state, and no other field does.

    That of a field which only a save in its place could show is what was written, not what was saved.
    """
    with started(ground, table, context) as (vcpu, found, tally):
        for field, row in _rows(table, vcpu, found, tally):
            if isinstance(row.values, Untold):
                tally.untold(field, row.values.reason)
        for round in range(min(2, table.rounds)):
            meant = table.values(found, vcpu, round)
            if not meant or not _written(table, vcpu, meant, tally, "before the move"):
                continue
            copy = ground.vcpu(context)
            with judged("moving a whole vCPU's state to a new vCPU"):
                restore_vcpu(copy, capture_vcpu(vcpu))
            _compare(table, table.read(copy), meant, tally, "in the copy")
