# SPDX-License-Identifier: Apache-2.0
"""The generated clauses about MSRs name the one that a KVM loses, shows otherwise or takes, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.mutations.world import world_loses, world_shows
from vmm.arch import ARCHITECTURE
from vmm.conformance.context import Context, Options
from vmm.conformance.expect import Skipped, Violation
from vmm.conformance.world import properties
from vmm.conformance.world.generate import Property
from vmm.conformance.world.ground import Ground
from vmm.kvm.ioctl import Interposer, interpose
from vmm.kvm.system import Kvm
from vmm.probe.host import Host, measure
from vmm.state.world.row import Untold
from vmm.state.world.table import Table

if ARCHITECTURE == "x86":
    from vmm.conformance.x86 import world_msrs
    from vmm.conformance.x86.world import DEVICE_GROUND, MSR_GROUND
    from vmm.state.x86.world.msrs import MSRS
    from vmm.state.x86.world.msrs_unlisted import UNLISTED

    GROUNDS: tuple[tuple[Ground, Table], ...] = ((MSR_GROUND, MSRS), (DEVICE_GROUND, UNLISTED))
else:
    GROUNDS = ()

_tables = pytest.mark.parametrize(("ground", "table"), GROUNDS, ids=lambda one: getattr(one, "title", ""))


def _wrong(judge: Property, ground: Ground, table: Table, host: Host, lie: Interposer | None = None) -> set[str]:
    """Return the fields that a property finds wrong."""
    with ExitStack() as stack:
        context = Context(host, Options(), stack)
        if lie:
            stack.enter_context(interpose(lie))
        try:
            judge(ground, table, context)
        except Violation as found:
            return {one.what.split(" ")[0].split(".", 1)[1] for one in found.fields}
        except Skipped:
            pytest.skip("this KVM has no such MSRs")
    return set()


def _fields(ground: Ground, table: Table, host: Host) -> Iterator[str]:
    """Yield the first field of each row of which this KVM's vCPUs have one that takes several values."""
    with ExitStack() as stack:
        vcpu = ground.vcpu(Context(host, Options(), stack))
        seen: set[int] = set()
        for field in table.read(vcpu):
            row = table.row(field)
            assert row is not None, field
            of = row.of(vcpu)
            if row.alone or row.when(vcpu) or id(row) in seen or of.values is None or isinstance(of.values, Untold):
                continue
            seen.add(id(row))
            if len({of.values.value(field, round) for round in range(of.values.rounds)}) > 1:
                yield field


@pytest.mark.kvm
@_tables
def test_an_msr_that_the_setter_loses_is_named_and_no_other(kvm: Kvm, ground: Ground, table: Table) -> None:
    host = measure(kvm)
    honest = _wrong(world_msrs.kept, ground, table, host)
    for field in list(_fields(ground, table, host)):
        if field not in honest:
            lost = _wrong(world_msrs.kept, ground, table, host, world_loses(table, field))
            assert lost - honest == {field}


@pytest.mark.kvm
@_tables
def test_an_msr_that_is_shown_otherwise_in_a_fresh_vcpu_is_named(kvm: Kvm, ground: Ground, table: Table) -> None:
    host = measure(kvm)
    honest = _wrong(properties.fresh, ground, table, host)
    for field in list(_fields(ground, table, host)):
        row = table.row(field)
        if row and row.fresh is not None and not isinstance(row.fresh, Untold) and field not in honest:
            shown = _wrong(properties.fresh, ground, table, host, world_shows(table, field))
            assert shown - honest == {field}
