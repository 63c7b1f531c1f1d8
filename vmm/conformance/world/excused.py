# SPDX-License-Identifier: Apache-2.0
"""What a row excuses and this KVM keeps nevertheless: where every KVM does, the row says less than it could.

Which bits of a field a back end keeps beyond those that the ABI promises is its own affair, so one host alone says
nothing; what all of them keep is a promise that a row misses.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmm.kvm.ioctl import KvmError, Refused
from vmm.kvm.vcpu import Vcpu
from vmm.state.world.row import Free, Row, Untold
from vmm.state.world.table import Table

__all__ = ["excused"]


def excused(table: Table, vcpu: Vcpu, fields: Iterable[str]) -> dict[str, int]:
    """Return the bits of each field that this vCPU keeps one by one and its row does not judge.

    The fields are those of a structure or of registers; each is as it was afterwards.
    """
    found: dict[str, int] = {}
    before = table.read(vcpu)
    for field in fields:
        of_vcpu = table.of(vcpu, field)
        if of_vcpu is None or of_vcpu[0]:
            continue
        row = of_vcpu[1]
        if row.alone or row.values is None:
            continue
        kept = sum(1 << bit for bit in _unjudged(row, table, field) if _keeps(table, vcpu, field, bit, before))
        if kept:
            found[field] = kept
    return found


def _unjudged(row: Row, table: Table, field: str) -> Iterable[int]:
    """Return the bits that no value of the row changes; of a list of values nothing is known."""
    bits = range(min(64, table.bits(field)))
    if isinstance(row.values, Untold):
        return bits
    if isinstance(row.values, Free):
        judged = row.values.mask | row.values.base
        return [bit for bit in bits if not judged >> bit & 1]
    return ()


def _keeps(table: Table, vcpu: Vcpu, field: str, bit: int, before: dict[str, int]) -> bool:
    wanted = before[field] ^ 1 << bit
    try:
        table.write(vcpu, {field: wanted})
    except (KvmError, Refused):
        return False
    found = table.read(vcpu).get(field)
    table.write(vcpu, {field: before[field]})
    return found == wanted
