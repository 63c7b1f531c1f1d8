# SPDX-License-Identifier: Apache-2.0
"""The closed world of arm64 has no hole: each register that a KVM lists has a row, and its values fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.arm64.id_registers import REGISTERS as ID_REGISTERS
from vmm.arm64.id_registers import Rule
from vmm.arm64.registers import FFR, VLS, Register, sysreg, v, x
from vmm.conformance.arm64.baseline import BASELINE, PMU
from vmm.state.arm64.registers import group_of
from vmm.state.arm64.world.core import FPSIMD
from vmm.state.arm64.world.identity import IDREGS, beside
from vmm.state.arm64.world.tables import EVERY, FIRM, REGISTERS
from vmm.state.world.row import Row, Untold
from vmm.state.world.table import Table

_PROBES = Path(__file__).resolve().parents[1] / "data" / "probes"
_BY_PIECE: dict[str, Table] = {table.piece.name: table for table in EVERY if table is not FPSIMD}


def _listed() -> Iterator[tuple[str, Register]]:
    """Yield every register of every recorded list and of the baseline, with where it is listed."""
    for file in sorted(_PROBES.glob("sve-*.json")):
        for number in json.loads(file.read_text())["registers"]:
            yield file.name, Register(int(number, 16))
    for series, found in {**BASELINE, "with a PMU": PMU}.items():
        for register in found:
            yield series, register
    for number in range(32):
        yield "without SVE", v(number)


_LISTED = sorted({register for _, register in _listed()})


def _fields(register: Register) -> tuple[Table, dict[str, int]]:
    """Return the table of a register and its fields, all bits 1 of an ID register's known ones."""
    table = _BY_PIECE[group_of(register)]
    if table.title == "vectors" and str(register).startswith("V"):
        table = FPSIMD
    if register == VLS:
        return table, table.split(bytes(register.size))
    return table, table.split({int(register): bytes(register.size)})


@pytest.mark.parametrize("register", _LISTED, ids=str)
def test_every_field_of_a_listed_register_has_a_row(register: Register) -> None:
    table, fields = _fields(register)
    assert fields
    assert [field for field in fields if table.row(field) is None] == []


def _rows() -> set[int]:
    found = set()
    for register in _LISTED:
        table, fields = _fields(register)
        found |= {id(table.row(field)) for field in fields}
    return found


# What no recorded machine has: memory tags, permission overlays, FPMR, SCTLR2_EL1.
_UNSEEN = {"RGSR_EL1 GCR_EL1 TFSR_EL1 TFSRE0_EL1", "S3_3_C10_C2_4", "FPMR"}


def test_every_row_is_that_of_a_register_that_some_kvm_lists() -> None:
    used = _rows()
    tables = [table for table in EVERY if table.title not in ("events", "mp-state")]
    unused = {row.fields for table in tables for row in table.rows if id(row) not in used}
    assert unused == _UNSEEN


def _judges(row: Row) -> bool:
    return any(part is not None and not isinstance(part, Untold) for part in (row.fresh, row.values)) or bool(
        row.refused
    )


@pytest.mark.parametrize("table", EVERY, ids=lambda table: table.title)
def test_every_row_judges_something_and_names_its_source(table: Table) -> None:
    assert [row.fields for row in table.rows if not (_judges(row) and row.source)] == []


@pytest.mark.parametrize("register", [register for register in _LISTED if register.size == 8], ids=str)
def test_the_values_of_a_register_fit_into_it(register: Register) -> None:
    table, fields = _fields(register)
    for field in fields:
        row = table.row(field)
        assert row is not None
        for values in (row.values, row.runs):
            if not isinstance(values, Untold | bool | None):
                assert all(0 <= values.value(field, round) < 1 << 64 for round in range(values.rounds)), field


@pytest.mark.parametrize("register", [register for register in _LISTED if register.size == 8], ids=str)
def test_a_register_has_two_values_that_are_not_its_first(register: Register) -> None:
    table, fields = _fields(register)
    for field in fields:
        row = table.row(field)
        assert row is not None
        if table is not IDREGS and isinstance(row.fresh, int) and row.values and not isinstance(row.values, Untold):
            values = {row.values.value(field, round) for round in range(row.values.rounds)} - {row.fresh}
            assert len(values) > 1 or row.fields in ("S2_0_C1_C1_4", "VENDOR_HYP_BMAP_2"), field


def test_ffr_has_runs_of_ones_only() -> None:
    table, fields = _fields(FFR)
    (field,) = fields
    row = table.row(field)
    assert row is not None
    assert row.values is not None
    assert not isinstance(row.values, Untold)
    for round in range(row.values.rounds):
        value = row.values.value(field, round)
        assert value & value + 1 == 0


# Fields of ID registers


@given(st.sampled_from(sorted(ID_REGISTERS)), st.integers(0, (1 << 64) - 1))
def test_an_id_register_that_was_taken_apart_and_put_together_is_the_same(name: str, value: int) -> None:
    part = {int(sysreg(*ID_REGISTERS[name].encoding)): value.to_bytes(8, "little")}
    fields = IDREGS.split(part)
    assert IDREGS.codec.join(part, fields) == part
    assert {field.partition(".")[0] for field in fields} == {name}


@given(st.sampled_from(sorted(ID_REGISTERS)), st.integers(0, (1 << 64) - 1), st.data())
def test_one_field_that_is_written_leaves_the_others(name: str, value: int, data: st.DataObject) -> None:
    part = {int(sysreg(*ID_REGISTERS[name].encoding)): value.to_bytes(8, "little")}
    fields = IDREGS.split(part)
    field = data.draw(st.sampled_from(ID_REGISTERS[name].fields))
    new = data.draw(st.integers(0, (1 << field.width) - 1))
    written = IDREGS.split(IDREGS.codec.join(part, {f"{name}.{field.name}": new}))
    assert written == {**fields, f"{name}.{field.name}": new}


@given(st.data())
def test_what_is_safer_is_safe_and_what_is_refused_is_not(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ID_REGISTERS)))
    field = data.draw(st.sampled_from(ID_REGISTERS[name].fields))
    value = data.draw(st.integers(0, (1 << field.width) - 1))
    safer, unsafe = beside(name, field, value)
    if field.rule in (Rule.LOWER, Rule.HIGHER):
        assert safer is None or field.safe_value(safer, value) == safer
        assert unsafe is None or field.safe_value(unsafe, value) == value


# Tables that are joined


def test_a_joined_table_finds_the_row_and_the_owner_of_a_field() -> None:
    table, field = REGISTERS.owner("CORE.X3")
    assert (table.title, field) == ("core", "X3")
    assert REGISTERS.row("CORE.X3") is table.row("X3")
    assert REGISTERS.bits("CORE.X3") == 64
    assert REGISTERS.label == "CORE, VECTORS, SYSREGS and COUNTERS"


def test_a_joined_table_splits_the_pieces_that_there_are() -> None:
    parts = {"CORE": {int(x(3)): (5).to_bytes(8, "little")}}
    assert REGISTERS.split(parts) == {"CORE.X3": 5}


class _Vcpu:
    """What rows ask of a vCPU without SVE."""

    chosen: ClassVar[dict[str, bytes]] = {}


def test_a_joined_table_gives_the_values_that_its_tables_give() -> None:
    vcpu: Any = _Vcpu()
    fields = {"CORE.X3": 0, "SYSREGS.TPIDR_EL1": 0, "COUNTERS.CNTVCT_EL0": 0}
    found = REGISTERS.values(fields, vcpu, 0)
    assert found.keys() == fields.keys()
    assert found["COUNTERS.CNTVCT_EL0"] == 1 << 40
    assert REGISTERS.of(vcpu, "CORE.X3") == ("", REGISTERS.row("CORE.X3"))


def test_no_piece_is_left_out_of_the_tables() -> None:
    from vmm.state.architecture import pieces

    chosen = {"INIT", "FINALIZE", "LIST"}  # what the VMM chose, and the list itself
    assert {*REGISTERS.tables, *FIRM.tables, "IDREGS"} == set(pieces("arm64")) - chosen
