# SPDX-License-Identifier: Apache-2.0
"""A guest in every register of which there is something, before and after a way through KVM that changes none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from vmm.arm64.guest import Guest
from vmm.arm64.vcpu import Feature, features
from vmm.conformance.arm64.world import widest
from vmm.conformance.context import Context
from vmm.conformance.expect import judged
from vmm.conformance.world.tally import NO_ROW, Tally
from vmm.kvm.vcpu import Vcpu
from vmm.state.arm64.world.core import CORE, FPSIMD, VECTORS
from vmm.state.arm64.world.firmware import CACHES, FIRMWARE
from vmm.state.arm64.world.identity import IDREGS
from vmm.state.arm64.world.run import EVENTS, MP_STATE
from vmm.state.arm64.world.sysregs import COUNTERS, SYSREGS
from vmm.state.world.row import Untold
from vmm.state.world.table import Table

__all__ = ["OWN", "Held", "give", "look", "still", "tables"]

# The state of a vCPU at some time: the fields of every table.
Held = Mapping[Table, Mapping[str, int]]
# What each vCPU has for itself, beside its vector registers.
OWN = (CORE, SYSREGS, CACHES, EVENTS, MP_STATE)
_VM_WIDE = (IDREGS, FIRMWARE, COUNTERS)


def still(context: Context, vcpus: int = 1, payload: str = "still") -> Guest:
    """A guest with all that a vCPU may have, and a payload, by default the one that changes no register."""
    return context.own(Guest(context.kvm, payload, features=widest(context), vcpus=vcpus))


def tables(vcpu: Vcpu, *, alone: bool = True) -> tuple[Table, ...]:
    """The tables of a vCPU; with those that all vCPUs of a VM share, where it is ``alone``."""
    vectors = VECTORS if Feature.SVE in features(vcpu) else FPSIMD
    return (*OWN, vectors, *(_VM_WIDE if alone else ()))


def give(
    vcpu: Vcpu, round: int, chosen: Iterable[Table], own: Mapping[str, int], *, running: bool = True
) -> dict[Table, dict[str, int]]:
    """Give all fields that may have one another value; ``own`` are those of CORE that the payload needs."""
    held = {}
    for table in chosen:
        now = table.read(vcpu)
        values = table.values(now, vcpu, round, running=running)
        if table is CORE:
            values |= own
        with judged(f"writing values to {table.name}"):
            table.write(vcpu, values)
        held[table] = {**now, **values}
    return held


def look(vcpu: Vcpu, held: Held, tally: Tally, where: str, spared: Callable[[str], str] = lambda field: "") -> None:
    """Every field has to have what it was given; ``spared`` says why one may not, or nothing."""
    for table, fields in held.items():
        with judged(f"reading {table.name} {where}"):
            read = table.read(vcpu)
        for field, value in fields.items():
            row, name = table.row(field), f"{table.name}.{field}"
            if row is None:
                tally.untold(name, NO_ROW)
            elif row.alone:
                continue  # another name of what is looked at
            elif isinstance(row.kept, Untold):
                tally.untold(name, row.kept.reason)
            elif reason := spared(field):
                tally.untold(name, reason)
            else:
                tally.look(name, where, read.get(field), row.read(value))
