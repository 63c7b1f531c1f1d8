# SPDX-License-Identifier: Apache-2.0
"""The generated clauses name the field: of each one that a KVM loses, and of no other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.mutations.world import struct_fields, world_loses
from vmm.arch import ARCHITECTURE
from vmm.conformance.context import Context, Options
from vmm.conformance.expect import Violation
from vmm.conformance.world import properties
from vmm.conformance.world.ground import Ground
from vmm.conformance.world.tally import Tally
from vmm.kvm.ioctl import interpose
from vmm.kvm.system import Kvm
from vmm.probe.host import Host, measure
from vmm.state.world.row import OneOf, Untold
from vmm.state.world.table import Table

if ARCHITECTURE == "x86":
    from vmm.conformance.x86.world import GROUND, WITH_EVENTS, X2APIC
    from vmm.state.x86.world.events import EVENTS, EVENTS_ALL
    from vmm.state.x86.world.lapic import LAPIC, LAPIC_X2
    from vmm.state.x86.world.modes import SREGS, SREGS_1
    from vmm.state.x86.world.registers import DEBUGREGS, MP_STATE, REGS
    from vmm.state.x86.world.vectors import FPU, XCRS

    ORDINARY = (REGS, SREGS, SREGS_1, DEBUGREGS, MP_STATE, FPU, XCRS, EVENTS, LAPIC)
    TABLES = [*((table, GROUND) for table in ORDINARY), (EVENTS_ALL, WITH_EVENTS), (LAPIC_X2, X2APIC)]
else:
    TABLES = []
# What KVM makes of other fields, or takes with them only.
DERIVED = {
    "lapic": {"PPR"},
    "lapic-x2": {"PPR"},
    "events-all": {"exception_has_payload", "exception.injected"},
    "sregs-1": {f"interrupt_bitmap[{word}]" for word in range(4)},
}


def _changeable(table: Table, field: str) -> bool:
    row = table.row(field)
    if row is None or row.values is None or isinstance(row.values, Untold):
        return False
    values = {row.values.value(field, round) for round in range(row.values.rounds)}
    return len(values) > 1


@pytest.mark.kvm
@pytest.mark.parametrize(("table", "ground"), TABLES, ids=lambda part: getattr(part, "title", ""))
def test_a_field_that_the_setter_loses_is_named_and_no_other(kvm: Kvm, table: Table, ground: Ground) -> None:
    host = measure(kvm)
    for field in filter(lambda name: _changeable(table, name), struct_fields(table)):
        with ExitStack() as stack, interpose(world_loses(table, field)), pytest.raises(Violation) as found:
            properties.kept(ground, table, Context(host, Options(), stack))
        named = {one.what.split(" ")[0].removeprefix(f"{table.piece.name}.") for one in found.value.fields}
        assert field in named
        assert named - {field} <= DERIVED.get(table.title, set())


# What a tally says


@pytest.fixture
def context(make_host: Callable[..., Host]) -> Context:
    return Context(make_host(), Options(), ExitStack())


def test_a_tally_without_findings_counts_fields_and_raises_nothing(context: Context) -> None:
    with Tally(context, "REGS") as tally:
        tally.look("rax", "as written", 1, 1)
        tally.look("rax", "in the copy", 1, 1)
        tally.look("rbx", "as written", 3, OneOf((2, 3), "either"))
        tally.untold("rip", "it moves")
    assert context.coverage == {"judged": 2, "untold": {"it moves": ["REGS.rip"]}}


def test_a_tally_names_every_wrong_field_and_the_first_few_in_its_line(context: Context) -> None:
    with pytest.raises(Violation) as found, Tally(context, "REGS") as tally:
        for number in range(7):
            tally.look(f"r{number}", "as written", 0x10 + number, 0x20)
    assert str(found.value).startswith(
        "REGS.r0 as written (also REGS.r1, REGS.r2, REGS.r3 and 3 more): expected 0x20"
    )
    assert [one.what for one in found.value.fields] == [f"REGS.r{number} as written" for number in range(7)]


def test_a_field_that_was_judged_is_not_untold(context: Context) -> None:
    with Tally(context, "REGS") as tally:
        tally.untold("rax", "open in one round")
        tally.look("rax", "as written", 1, 1)
    assert context.coverage == {"judged": 1, "untold": {}}
