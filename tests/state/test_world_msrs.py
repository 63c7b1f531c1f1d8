# SPDX-License-Identifier: Apache-2.0
"""No MSR is without a row: neither of those that a saved state may hold nor of those that a recorded KVM lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmm.state.world.row import Row, Untold
from vmm.state.world.table import Table
from vmm.state.x86.msrs import NOT_IN_MSRS, allowed_msrs
from vmm.state.x86.world.msr_row import MsrRow
from vmm.state.x86.world.msrs import MSRS, XFD
from vmm.state.x86.world.msrs_unlisted import HYPERV, UNLISTED
from vmm.x86.msr_names import KNOWN, Msr, saved_name

TABLES = (MSRS, XFD, UNLISTED, HYPERV)
_PROBES = Path(__file__).parents[1] / "data" / "probes"
# The clauses world.tsc-* are about it: no value of it stays.
_ELSEWHERE = {Msr.TSC}


def _recorded() -> dict[int, str]:
    """Every MSR that a recorded KVM lists, or lets be read and written beside, with one of the hosts."""
    found: dict[int, str] = {}
    for path in sorted(_PROBES.glob("*.json")):
        document = json.loads(path.read_text())
        if document["architecture"] == "x86":
            for index in (*document["msrs"], *(document["msrs_unlisted"] or ()), *document["feature_msrs"]):
                found.setdefault(int(index, 16), path.stem)
    return found


def _in_a_row(index: int) -> bool:
    return any(table.row(saved_name(index)) for table in TABLES)


def test_every_msr_that_a_state_may_hold_has_a_row() -> None:
    wanted = allowed_msrs() & KNOWN - NOT_IN_MSRS - _ELSEWHERE
    assert sorted(hex(index) for index in wanted if MSRS.row(saved_name(index)) is None) == []


def test_every_msr_of_a_recorded_kvm_has_a_row() -> None:
    missing = {hex(index): host for index, host in _recorded().items() if index not in _ELSEWHERE}
    assert {index: host for index, host in missing.items() if not _in_a_row(int(index, 16))} == {}


def test_an_msr_that_format_1_has_no_name_for_is_in_a_row_by_its_number() -> None:
    assert MSRS.row("0x1fc") is not None
    assert MSRS.row("0x4f000000") is None


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_every_row_of_msrs_judges_something_and_names_its_source(table: Table) -> None:
    assert [row.fields for row in table.rows if not (_judges(row) and row.source)] == []


def _judges(row: Row) -> bool:
    told = (row.fresh, row.values, *((row.rdmsr, row.wrmsr) if isinstance(row, MsrRow) else ()))
    return row.varies is not None or any(part is not None and not isinstance(part, Untold) for part in told)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_no_msr_is_in_two_rows_of_a_table(table: Table) -> None:
    fields = [field for row in table.rows for field in row.fields.split()]
    assert sorted({field for field in fields if fields.count(field) > 1}) == (
        ["0x40000080", "0x400000b0"] if table is HYPERV else []
    )


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_an_msrs_values_are_of_64_bits(table: Table) -> None:
    for row in table.rows:
        if row.values is not None and not isinstance(row.values, Untold):
            for field in row.fields.split():
                values = [row.values.value(field, round) for round in range(row.values.rounds)]
                assert all(0 <= value < 1 << 64 for value in values), field
