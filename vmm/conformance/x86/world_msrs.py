# SPDX-License-Identifier: Apache-2.0
"""What is judged of MSRs beside the properties of every table: the guest's own accesses, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from vmm.conformance.context import Context
from vmm.conformance.expect import judged
from vmm.conformance.world.excused import excused
from vmm.conformance.world.ground import Ground
from vmm.conformance.world.properties import rows_of, started
from vmm.conformance.world.tally import Tally
from vmm.conformance.x86.apic import SPLIT
from vmm.conformance.x86.lists import GP, Answer, ListGuest, answers
from vmm.conformance.x86.world import Equipped
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.state.piece import RegisterSet, registers
from vmm.state.world.row import Allowed, Number, Refusal, Untold, wanted
from vmm.state.world.table import Table
from vmm.state.x86.unsettled import before
from vmm.state.x86.world.msr_row import Guest, MsrRow, ignores_unknown
from vmm.x86 import msr
from vmm.x86.cpuid import supported
from vmm.x86.msr_names import Msr

__all__ = [
    "FROZEN",
    "KEPT",
    "READS",
    "REFUSED",
    "SHOWN",
    "WRITES",
    "frozen",
    "kept",
    "reads",
    "refused",
    "shown",
    "writes",
]

FROZEN = "A feature MSR of {} is chosen before the vCPU runs: then another value is refused, its own is taken"
READS = "The guest reads by RDMSR what the host wrote to every MSR of {}, and gets #GP for those that it may not read"
WRITES = "The host reads what the guest wrote by WRMSR to every MSR of {}; what may not be written is #GP, and stays"
SHOWN = "Every MSR of {} is the same by KVM_GET_ONE_REG as by KVM_GET_MSRS, whichever call has written it"
REFUSED = "What an MSR of {} may not be is not taken, and then no MSR has changed"
KEPT = "Every legal value of every MSR of {} is taken and read back, and what is masked reads as it has to"
_ROUNDS, _MOST = 2, msr.MAX_BATCH - 1
_IGNORED = "with kvm.ignore_msrs a guest that lacks an MSR gets 0 or nothing, and no fault"
_FAULTS = Answer(0, GP)


def _indices(table: Table, vcpu: Vcpu) -> dict[str, int]:
    """Return the MSRs of a vCPU by their fields."""
    part, piece = table.part(vcpu), table.piece
    assert part is not None and isinstance(piece, RegisterSet)
    return {piece.register_name(index): index for index in registers(piece.name, part)}


def _taken(vcpu: Vcpu, indices: Mapping[str, int], values: Mapping[str, int]) -> dict[str, int]:
    """Write MSRs in their order; return those that KVM took."""
    left, taken = list(values.items()), dict[str, int]()
    while left:
        batch = left[:_MOST]
        done = _set(vcpu, [(indices[field], value) for field, value in batch])
        taken |= dict(batch[:done])
        left = left[done + (done < len(batch)) :]
    return taken


def _set(vcpu: Vcpu, values: Sequence[tuple[int, int]]) -> int:
    """Return how many KVM took; none if it refuses the call because of the first."""
    try:
        return msr.set_msrs(vcpu, values)
    except KvmError:
        return 0


def _now(vcpu: Vcpu, indices: Mapping[str, int], fields: Iterable[str]) -> dict[str, int | None]:
    names = list(fields)
    found = msr.get_readable(vcpu, [indices[field] for field in names])
    return {field: found.get(indices[field]) for field in names}


# --- the host ---


def kept(ground: Ground, table: Table, context: Context) -> None:
    """As the property of that name, in few calls."""
    with started(ground, table, context) as (vcpu, found, tally):
        indices = _indices(table, vcpu)
        rows = dict(_rows(table, vcpu, found, tally))
        for field, row in rows.items():
            if isinstance(row.values, Untold):
                tally.untold(field, row.values.reason)
        for round in range(table.rounds):
            _exchange(vcpu, indices, table.values(found, vcpu, round), tally)
            for field, value in table.alone(found, vcpu, round):
                _exchange(vcpu, indices, {field: value}, tally)
        for at in range(max(len(row.masked) for row in rows.values())):
            pairs = {field: row.masked[at] for field, row in rows.items() if at < len(row.masked)}
            given = {field: value for field, (value, _) in pairs.items()}
            _exchange(vcpu, indices, given, tally, {field: then for field, (_, then) in pairs.items()})
        if context.options.exhaustive:
            context.coverage["excused"] = excused(table, ground.vcpu(context), found)


def _exchange(
    vcpu: Vcpu,
    indices: Mapping[str, int],
    given: Mapping[str, int],
    tally: Tally,
    expected: Mapping[str, Number | Allowed] | None = None,
) -> None:
    """Write values and read them back, which are as given if nothing else is expected."""
    taken = _taken(vcpu, indices, given)
    now = _now(vcpu, indices, taken)
    for field, value in given.items():
        told: Number | Allowed = value if expected is None else expected[field]
        if field not in taken:
            tally.wrong(field, f"= {value:#x}", "KVM does not take it", "success")
        else:
            where = f"after {value:#x} was written"
            tally.look(field, where, now[field], wanted(told, vcpu))


def refused(ground: Ground, table: Table, context: Context) -> None:
    """Try all that is refused, one by one, and look at all MSRs behind it."""
    with started(ground, table, context) as (vcpu, found, tally):
        indices = _indices(table, vcpu)
        rows = dict(_rows(table, vcpu, found, tally))
        _taken(vcpu, indices, table.values(found, vcpu, 0))
        settled = table.read(vcpu)
        for field, row in rows.items():
            for refusal in row.refused:
                value = refusal.of(vcpu, found[field])
                if value is None:
                    continue
                if _set(vcpu, [(indices[field], value)]):
                    tally.wrong(field, f"= {value:#x}", "success", "KVM does not set it")
                    msr.set_msr(vcpu, indices[field], settled[field])
                else:
                    tally.judged(field)
        for field, value in table.read(vcpu).items():
            if value != settled[field] and _stays(rows.get(field)):
                tally.look(field, "after values were refused", value, settled[field])


def _stays(row: MsrRow | None) -> bool:
    """Tell whether nothing changes an MSR by itself."""
    return row is not None and not isinstance(row.kept, Untold)


def shown(ground: Ground, table: Table, context: Context) -> None:
    """Write by one call and read by the other, both ways."""
    with started(ground, table, context) as (vcpu, found, tally):
        indices = _indices(table, vcpu)
        rows = dict(_rows(table, vcpu, found, tally))
        _taken(vcpu, indices, table.values(found, vcpu, 0))
        for field, value in table.read(vcpu).items():
            if _stays(rows.get(field)):
                tally.look(field, "by KVM_GET_ONE_REG", _one(vcpu, indices[field]), value)
        given = {}
        for field, value in table.values(found, vcpu, 1).items():
            if _set_one(vcpu, indices[field], value):
                given[field] = value
            elif _set(vcpu, [(indices[field], value)]):
                tally.wrong(field, f"= {value:#x} by KVM_SET_ONE_REG", "a refusal", "success, as by KVM_SET_MSRS")
        for field, now in _now(vcpu, indices, given).items():
            tally.look(field, "after KVM_SET_ONE_REG", now, given[field])


def _one(vcpu: Vcpu, index: int) -> int | None:
    try:
        return int.from_bytes(vcpu.get_one_reg(msr.msr_id(index)), "little")
    except KvmError:
        return None


def _set_one(vcpu: Vcpu, index: int, value: int) -> bool:
    try:
        vcpu.set_one_reg(msr.msr_id(index), value.to_bytes(8, "little"))
    except KvmError:
        return False
    return True


def _rows(table: Table, vcpu: Vcpu, fields: Mapping[str, int], tally: Tally) -> Iterator[tuple[str, MsrRow]]:
    for field, row in rows_of(table, vcpu, fields, tally):
        assert isinstance(row, MsrRow)
        yield field, row


# --- the guest ---


@contextmanager
def _guest(ground: Ground, table: Table, context: Context) -> Iterator[tuple[ListGuest, dict[str, int], Tally]]:
    """Give a guest with all that KVM supports, its MSRs by their fields, and who counts."""
    before(context.kvm)
    lapic = context.host.facts.capabilities["KVM_CAP_SPLIT_IRQCHIP"] > 0
    lists = ListGuest(context, supported(context.kvm), capabilities=SPLIT if lapic else {})
    if isinstance(ground, Equipped):
        ground.equip(context, lists.guest.vcpu)
    if table.part(lists.guest.vcpu) is None:
        context.skip(f"this KVM has no {table.piece.name} ({table.piece.get})")
    with Tally(context, table.piece.name) as tally:
        yield lists, _indices(table, lists.guest.vcpu), tally


def _access(field: str, access: Guest | Untold, tally: Tally) -> Guest | None:
    """Return what an access has to be, None if that cannot be told."""
    if isinstance(access, Untold):
        tally.untold(field, access.reason)
        return None
    if access is Guest.UNKNOWN:
        if ignores_unknown():
            tally.untold(field, _IGNORED)
            return None
        return Guest.FAULT
    return access


def reads(ground: Ground, table: Table, context: Context) -> None:
    """The host writes all MSRs, then the guest reads all."""
    with _guest(ground, table, context) as (lists, indices, tally):
        vcpu = lists.guest.vcpu
        found = table.read(vcpu)
        rows = dict(_rows(table, vcpu, found, tally))
        wanted = {field: access for field, row in rows.items() if (access := _access(field, row.rdmsr, tally))}
        for round in range(_ROUNDS):
            asked = [indices[field] for field in wanted]
            lists.prepare("rdmsr_list", struct.pack(f"<{len(asked)}Q", *asked), len(asked))
            meant = {
                field: value
                for field, value in table.values(found, vcpu, round).items()
                if field in wanted and not (round and rows[field].frozen)
            }
            taken = _taken(vcpu, indices, meant)
            now = table.read(vcpu) | taken
            for (field, access), answer in zip(wanted.items(), answers(lists.finish("RDMSR")), strict=True):
                _judge(tally, field, "by RDMSR", answer, _FAULTS if access is Guest.FAULT else Answer(now[field]))


def frozen(ground: Ground, table: Table, context: Context) -> None:
    """Run a guest, then write what its VMM chose before."""
    with _guest(ground, table, context) as (lists, indices, tally):
        vcpu = lists.guest.vcpu
        found = table.read(vcpu)
        chosen = {field: row for field, row in _rows(table, vcpu, found, tally) if row.frozen}
        features = set(msr.feature_index_list(context.kvm))
        rows = {field: row for field, row in chosen.items() if indices[field] in features}
        for field in chosen.keys() - rows:
            tally.untold(field, "it is no feature MSR of this KVM (KVM_GET_MSR_FEATURE_INDEX_LIST)")
        lists.read_msrs([Msr.PAT])
        for field, row in rows.items():
            own = found[field]
            if not _set(vcpu, [(indices[field], own)]):
                tally.wrong(field, f"= {own:#x}, as it is, once the vCPU has run", "KVM does not take it", "success")
            for value in _others(row, field, own):
                if _set(vcpu, [(indices[field], value)]):
                    tally.wrong(field, f"= {value:#x} once the vCPU has run", "success", "KVM does not set it")
        for field, now in _now(vcpu, indices, rows).items():
            tally.look(field, "after writes to a vCPU that has run", now, found[field])


def _others(row: MsrRow, field: str, own: int) -> list[int]:
    """Return legal values of an MSR that it does not have."""
    if row.values is None or isinstance(row.values, Untold):
        return []
    values = {row.values.value(field, round) for round in range(row.values.rounds)}
    return sorted(values - {own})


def _judge(tally: Tally, field: str, where: str, answer: Answer, wanted: Answer) -> None:
    if answer == wanted:
        tally.judged(field)
    else:
        tally.wrong(field, where, str(answer), str(wanted))


def writes(ground: Ground, table: Table, context: Context) -> None:
    """The guest writes all MSRs, then the host reads all."""
    with _guest(ground, table, context) as (lists, indices, tally):
        vcpu = lists.guest.vcpu
        found = table.read(vcpu)
        rows = {field: row for field, row in _rows(table, vcpu, found, tally) if not row.alone}
        wanted = {field: access for field, row in rows.items() if (access := _access(field, row.wrmsr, tally))}
        for round in range(_ROUNDS):
            given = dict(_given(table, vcpu, rows, wanted, round))
            with judged("WRMSR in the guest"):
                written = lists.write_msrs([(indices[field], value) for field, value in given.items()])
            now = table.read(vcpu)
            for (field, value), answer in zip(given.items(), written, strict=True):
                access = wanted[field]
                _judge(
                    tally, field, f"= {value:#x} by WRMSR", answer, _FAULTS if access is Guest.FAULT else Answer(0)
                )
                expected = value if access is Guest.SAME else found[field]
                if _stays(rows[field]):
                    tally.look(field, f"after WRMSR of {value:#x}", now.get(field), expected)
            found = now
        _refused_in_guest(lists, indices, rows, wanted, tally)


def _refused_to_guest(row: MsrRow, vcpu: Vcpu, fresh: int) -> Iterator[int]:
    refusals: Sequence[Refusal] = row.refused if row.wrmsr_refused is None else row.wrmsr_refused
    return (value for refusal in refusals if (value := refusal.of(vcpu, fresh)) is not None)


def _refused_in_guest(
    lists: ListGuest,
    indices: Mapping[str, int],
    rows: Mapping[str, MsrRow],
    wanted: Mapping[str, Guest],
    tally: Tally,
) -> None:
    """What the host may not write the guest may not either, where it may write at all."""
    vcpu = lists.guest.vcpu
    had = _now(vcpu, indices, rows)
    pairs = [
        (field, value)
        for field, access in wanted.items()
        if access is Guest.SAME and (now := had[field]) is not None
        for value in _refused_to_guest(rows[field], vcpu, now)
    ]
    if not pairs:
        return
    operands = b"".join(struct.pack("<QQ", indices[field], value) for field, value in pairs)
    lists.prepare("wrmsr_list", operands, len(pairs))
    settled = {field: now for field, now in _now(vcpu, indices, rows).items() if now is not None}
    for (field, value), answer in zip(pairs, answers(lists.finish("WRMSR")), strict=True):
        _judge(tally, field, f"= {value:#x} by WRMSR", answer, _FAULTS)
    for field, now in _now(vcpu, indices, settled).items():
        if _stays(rows[field]) and now != settled[field]:
            tally.look(field, "after WRMSR of values that are refused", now, settled[field])


def _given(
    table: Table, vcpu: Vcpu, rows: Mapping[str, MsrRow], wanted: Mapping[str, Guest], round: int
) -> Iterator[tuple[str, int]]:
    """Yield what the guest writes: values of its own, and another one than it is where that changes nothing."""
    now = table.read(vcpu)
    for field, access in wanted.items():
        row = rows[field]
        values = row.wrmsr_values or row.values
        if access is not Guest.SAME:
            yield field, now[field] ^ 4
        elif values and not isinstance(values, Untold):
            yield field, values.value(field, round)
