# SPDX-License-Identifier: Apache-2.0
"""The closed world has no hole: each field has a row, and what rows give a field is what the row says it may be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.arch import ARCHITECTURE
from vmm.state.world.fields import StructCodec
from vmm.state.world.row import ELSEWHERE, Canonical, Free, Of, Row, Untold
from vmm.state.world.table import Table
from vmm.state.x86.world.area import area_fields
from vmm.state.x86.world.chips import CHIPS
from vmm.state.x86.world.clock import CLOCK
from vmm.state.x86.world.events import EVENTS, EVENTS_ALL, SMM
from vmm.state.x86.world.lapic import LAPIC, LAPIC_X2
from vmm.state.x86.world.modes import SREGS, SREGS_1, SREGS_LONG, SREGS_PAE
from vmm.state.x86.world.registers import DEBUGREGS, MP_STATE, REGS
from vmm.state.x86.world.vectors import FPU, LEGACY, XCRS, XSAVE
from vmm.x86.xsave import largest_size

# Structures of the kernel's headers are known where their architecture runs.
STRUCTURES = (
    (
        REGS, SREGS, SREGS_1, SREGS_LONG, SREGS_PAE, DEBUGREGS, MP_STATE, FPU, XCRS, EVENTS, EVENTS_ALL, SMM, LAPIC,
        LAPIC_X2, *CHIPS, CLOCK,
    )
    if ARCHITECTURE == "x86"
    else ()
)  # fmt: skip
_FIELDS = st.from_regex(r"[a-z]{1,4}(\.[a-z]{1,5})?(\[[0-9]\])?", fullmatch=True)


def _names(table: Table) -> list[str]:
    assert isinstance(table.codec, StructCodec)
    return [name for name, _, _ in table.codec.leaves]


# What counts by itself from a moment that only the kernel knows.
TIMES = {"channels[[]?[]].count_load_time", "clock", "realtime host_tsc"}


def _judges(row: Row) -> bool:
    told = any(part is not None and not isinstance(part, Untold) for part in (row.fresh, row.values))
    return told or bool(row.refused or row.masked) or row is ELSEWHERE or row.fields in TIMES


@pytest.mark.parametrize("table", STRUCTURES, ids=lambda table: table.title)
def test_every_number_of_a_structure_has_a_row(table: Table) -> None:
    assert [name for name in _names(table) if table.row(name) is None] == []


@pytest.mark.parametrize("table", STRUCTURES, ids=lambda table: table.title)
def test_every_row_is_that_of_a_field(table: Table) -> None:
    used = {id(table.row(name)) for name in _names(table)}
    assert [row.fields for row in table.rows if id(row) not in used] == []


@pytest.mark.parametrize("table", STRUCTURES, ids=lambda table: table.title)
def test_every_row_judges_something_and_names_its_source(table: Table) -> None:
    assert [row.fields for row in table.rows if not (_judges(row) and row.source)] == []


@pytest.mark.parametrize("table", STRUCTURES, ids=lambda table: table.title)
def test_a_fields_values_fit_into_it(table: Table) -> None:
    assert isinstance(table.codec, StructCodec)
    for name, _, size in table.codec.leaves:
        row = table.row(name)
        assert row is not None
        if row.values is not None and not isinstance(row.values, Untold):
            assert all(0 <= row.values.value(name, round) < 1 << 8 * size for round in range(row.values.rounds)), name


@given(_FIELDS, st.integers(0, (1 << 128) - 1))
def test_a_free_field_has_values_within_its_mask_and_their_complements(field: str, mask: int) -> None:
    values = Free(mask)
    first, second, ones, none = (values.value(field, round) for round in range(values.rounds))
    assert (first | second, first & second, ones, none) == (mask, 0, mask, 0)


@given(_FIELDS, st.integers(0, 12))
def test_a_canonical_address_is_one(field: str, aligned: int) -> None:
    values = Canonical(aligned)
    for round in range(values.rounds):
        value = values.value(field, round)
        assert value >> 47 in (0, (1 << 17) - 1)
        assert value % (1 << aligned) == 0


@given(st.lists(st.integers(0, 1 << 64), min_size=1), st.integers(0, 100))
def test_the_values_of_a_list_begin_anew_after_the_last(values: list[int], round: int) -> None:
    assert Of(*values).value("any", round) == values[round % len(values)]


@pytest.mark.parametrize("table", STRUCTURES, ids=lambda table: table.title)
@given(data=st.data())
def test_a_structure_that_was_taken_apart_and_put_together_is_the_same(table: Table, data: st.DataObject) -> None:
    assert isinstance(table.codec, StructCodec)
    size = max(at + size for _, at, size in table.codec.leaves)
    part = data.draw(st.binary(min_size=size, max_size=size))
    fields = table.codec.split(part)
    assert table.codec.join(part, fields) == part
    name, _, length = data.draw(st.sampled_from(table.codec.leaves))
    value = data.draw(st.integers(0, (1 << 8 * length) - 1))
    assert table.codec.split(table.codec.join(part, {name: value})) == {**fields, name: value}


@pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"the XSAVE area is x86's; this is {ARCHITECTURE}")
def test_every_field_of_the_xsave_area_has_a_row_and_none_overlaps_another() -> None:
    fields = area_fields(largest_size())
    assert [name for name, _, _ in fields if XSAVE.row(name) is None] == []
    places = sorted((offset, offset + size) for _, offset, size in fields)
    assert [(end, start) for (_, end), (start, _) in itertools.pairwise(places) if start < end] == []


@pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"x87 is x86's; this is {ARCHITECTURE}")
def test_what_fpu_and_xsave_both_have_may_have_the_same_values() -> None:
    for fpu, xsave in LEGACY.items():
        first, second = FPU.row(fpu), XSAVE.row(xsave)
        assert first and second
        assert (first.fresh, first.values) == (second.fresh, second.values), fpu
