# SPDX-License-Identifier: Apache-2.0
"""What is judged of every field: its value in a fresh vCPU, what is written, what is refused, what comes over.

Each property is a function of the architecture's ground, a table of rows and a clause's context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vmm.conformance.context import Context
from vmm.conformance.expect import judged
from vmm.conformance.world.excused import excused
from vmm.conformance.world.ground import Ground
from vmm.conformance.world.tally import NO_ROW, Tally
from vmm.kvm.ioctl import KvmError, Refused, errno_name
from vmm.kvm.vcpu import Vcpu
from vmm.state.vcpu import capture_vcpu, restore_vcpu
from vmm.state.world.row import After, Fresh, Made, OneOf, Refusal, Row, Untold, fits, wanted
from vmm.state.world.table import Table

__all__ = ["after_reset", "fresh", "kept", "moved", "refused", "reset", "rows_of", "started"]


@contextmanager
def started(ground: Ground, table: Table, context: Context) -> Iterator[tuple[Vcpu, dict[str, int], Tally]]:
    """Give a new vCPU, the fields of the piece as they are in it, and who counts what is judged of them."""
    vcpu = ground.vcpu(context)
    with judged(f"reading {table.label} of a fresh vCPU"):
        found = table.read(vcpu)
    if not found:
        context.skip(f"this KVM tells of no {table.label}")
    with Tally(context, table.name) as tally:
        yield vcpu, found, tally


def rows_of(table: Table, vcpu: Vcpu, fields: Mapping[str, int], tally: Tally) -> Iterator[tuple[str, Row]]:
    """Yield each field with its row; those that this vCPU has only by name are told as such."""
    for field in fields:
        found = table.of(vcpu, field)
        if found is None or found[0]:
            tally.untold(field, NO_ROW if found is None else found[0])
        else:
            yield field, found[1]


def fresh(ground: Ground, table: Table, context: Context) -> None:
    """Every field of a fresh vCPU has the value that its reset gives it."""
    with started(ground, table, context) as (vcpu, found, tally):
        for field, row in rows_of(table, vcpu, found, tally):
            told = row.freshly(vcpu)
            if isinstance(told, Untold):
                tally.untold(field, told.reason)
            elif told is not None:
                tally.look(field, "in a fresh vCPU", found[field], told)


def _written(table: Table, vcpu: Vcpu, values: Mapping[str, int], tally: Tally, where: str) -> Mapping[str, int]:
    """Write fields together and return those that KVM took; if it refuses, one by one, to find out which."""

    def refused(field: str, error: KvmError | Refused) -> None:
        tally.wrong(field, f"{where} = {values[field]:#x}", _why(error), "success")

    return table.give(vcpu, values, refused)


def _why(error: KvmError | Refused) -> str:
    return f"{error.call} failed with {error.errno_name}" if isinstance(error, KvmError) else "KVM does not take it"


def kept(ground: Ground, table: Table, context: Context) -> None:
    """Every value that a field may have is taken, and read back by the same call; what is masked reads as it must."""
    with started(ground, table, context) as (vcpu, found, tally):
        for field, row in rows_of(table, vcpu, found, tally):
            if isinstance(row.values, Untold):
                tally.untold(field, row.values.reason)
        for round in range(table.rounds):
            meant = table.values(found, vcpu, round)
            _exchange(table, vcpu, meant, tally, "as written")
            for field, value in table.alone(found, vcpu, round):
                _exchange(table, vcpu, {field: value}, tally, "as written")
        for field, row in rows_of(table, vcpu, found, tally):
            own, name = table.owner(field)
            for given, then in [(given, wanted(then, vcpu)) for given, then in row.masked]:
                if _written(table, vcpu, {field: given}, tally, "as written"):
                    tally.look(field, f"after {given:#x} was written", own.read(vcpu).get(name), then)
        if context.options.exhaustive:
            context.coverage["excused"] = excused(table, ground.vcpu(context), found)


def _exchange(table: Table, vcpu: Vcpu, meant: Mapping[str, int], tally: Tally, where: str) -> None:
    if meant and (taken := _written(table, vcpu, meant, tally, where)):
        _compare(table, table.read(vcpu), taken, tally, where)


def _compare(table: Table, read: Mapping[str, int], meant: Mapping[str, int], tally: Tally, where: str) -> None:
    for field, value in meant.items():
        tally.look(field, where, read.get(field), table.expected(field, value))


def refused(ground: Ground, table: Table, context: Context) -> None:
    """What a field may not be is refused, and then nothing has changed.

    All of it is tried before anything is read again; if something has changed then, a second vCPU shows after which.
    """
    with started(ground, table, context) as (vcpu, found, tally):
        _give(table, vcpu, found)
        before = table.part(vcpu)
        values = list(_refusals(table, vcpu, found, tally))
        taken = [not _refuse(table, vcpu, field, refusal, before, tally, context) for field, refusal in values]
        after = table.part(vcpu)
        if any(taken) or not _same(table, before, after):
            vcpu = ground.vcpu(context)
            _give(table, vcpu, found)
            for field, refusal in _refusals(table, vcpu, found, tally):
                _one_by_one(table, vcpu, field, refusal, tally, context)
        if not any(taken):
            _unchanged(table, before, after, tally, "after all refusals")


def _unchanged(table: Table, before: Any, after: Any, tally: Tally, where: str) -> None:
    """No field that stays by itself may have changed."""
    if before is None or after is None or before == after:
        return
    had, read = _steady(table, table.split(before)), table.split(after)
    _compare(table, read, {field: value for field, value in had.items() if read.get(field) != value}, tally, where)


def _steady(table: Table, read: Mapping[str, int]) -> dict[str, int]:
    """Leave out what counts by itself, as a clock does: not even its first value is told."""
    return {field: value for field, value in read.items() if not _counts(table.row(field))}


def _counts(row: Row | None) -> bool:
    if row is None:
        return False
    return isinstance(row.fresh, Untold) or (isinstance(row.values, Untold) and isinstance(row.kept, Untold))


def _same(table: Table, before: Any, now: Any) -> bool:
    """Tell whether a piece is as it was, beside what counts on."""
    if before == now:
        return True
    had, has = (table.split(part) for part in (before, now))
    return had.keys() == has.keys() and all(fits(has[field], table.expected(field, had[field])) for field in had)


def _give(table: Table, vcpu: Vcpu, fields: Mapping[str, int]) -> None:
    """Write values of the first round, in a piece of which anything can be written."""
    if values := table.values(fields, vcpu, 0):
        table.write(vcpu, values)


def _refusals(table: Table, vcpu: Vcpu, fields: Mapping[str, int], tally: Tally) -> Iterator[tuple[str, Refusal]]:
    """Yield what has to be refused on this vCPU."""
    for field, row in rows_of(table, vcpu, fields, tally):
        for refusal in row.refused:
            value = refusal.of(vcpu, fields[field])
            if value is not None:
                yield field, Refusal(value, refusal.errno)


def _one_by_one(table: Table, vcpu: Vcpu, field: str, refusal: Refusal, tally: Tally, context: Context) -> None:
    """Try one value and look whether it changes anything."""
    part = table.part(vcpu)
    assert part is not None
    if _refuse(table, vcpu, field, refusal, part, tally, context):
        _unchanged(table, part, table.part(vcpu), tally, f"after {field} = {refusal.value:#x} was refused")


def _refuse(
    table: Table, vcpu: Vcpu, field: str, refusal: Refusal, part: Any, tally: Tally, context: Context
) -> bool:
    """Write what has to be refused to a vCPU whose piece is ``part``; return whether it was."""
    value = refusal.value
    assert isinstance(value, int)
    where = f"= {value:#x}"
    wanted = errno_name(refusal.errno) if refusal.errno else "KVM does not set it"
    try:
        table.write(vcpu, {field: value}, part)
    except Refused:
        tally.judged(field)
    except KvmError as error:
        tally.judged(field)
        if error.errno != refusal.errno:
            context.drift(f"{table.name}.{field} {where}: {error.errno_name} and not {wanted}")
    else:
        tally.wrong(field, where, "success", wanted)
        return False
    return True


def moved(ground: Ground, table: Table, context: Context) -> None:
    """Every value that a field may have comes over to a new vCPU with the rest of the state, and no other field does.

    That of a field which only a save in its place could show is what was written, not what was saved.
    """
    with started(ground, table, context) as (vcpu, found, tally):
        for field, row in rows_of(table, vcpu, found, tally):
            if isinstance(row.values, Untold):
                tally.untold(field, row.values.reason)
        for round in range(min(2, table.rounds)):
            meant = table.values(found, vcpu, round)
            taken = _written(table, vcpu, meant, tally, "before the move") if meant else {}
            if not taken:
                continue
            copy = (ground.blank or ground.vcpu)(context)
            with judged("moving a whole vCPU's state to a new vCPU"):
                restore_vcpu(copy, capture_vcpu(vcpu))
            _compare(table, table.read(copy), taken, tally, "in the copy")


def reset(ground: Ground, table: Table, context: Context) -> None:
    """Another reset gives every field what its row says: the value of a fresh vCPU, or the one that it had."""
    assert ground.reset is not None
    with started(ground, table, context) as (vcpu, found, tally):
        meant = table.values(found, vcpu, 0)
        if meant and not _written(table, vcpu, meant, tally, "before the reset"):
            return
        with judged("another reset"):
            ground.reset(vcpu)
        read = table.read(vcpu)
        for field, row in rows_of(table, vcpu, found, tally):
            told = after_reset(row, vcpu, found[field], meant.get(field, found[field]))
            if isinstance(told, Untold):
                tally.untold(field, told.reason)
            elif told is not None:
                tally.look(field, "after another reset", read.get(field), told)


def after_reset(row: Row, vcpu: Vcpu, fresh: int, had: int) -> Fresh:
    """Return what a reset makes of a field that was ``fresh`` at first and has another value now."""
    if row.init is After.FRESH:
        return fresh
    if row.init is After.KEPT:
        return row.read(had)
    if row.init is After.EITHER:
        return OneOf((fresh, had), "it stays or begins anew")
    assert not isinstance(row.init, After)
    if isinstance(row.init, Made):
        return row.init.function(had)
    return row.init if row.init is None or isinstance(row.init, Untold) else wanted(row.init, vcpu)
