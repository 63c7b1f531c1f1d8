# SPDX-License-Identifier: Apache-2.0
"""CPUID tables as values."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.kvm.system import Kvm
from vmm.x86 import cpuid
from vmm.x86.cpuid import Cpuid, Entry
from vmm.x86.cpuid_names import FEATURES

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason=f"x86 code; this is {platform.machine()}")

SIGNIFICANT = 1
TABLE = Cpuid(
    [
        Entry(0, eax=0xD, ebx=0x756E6547, ecx=0x6C65746E, edx=0x49656E69),
        Entry(1, eax=0x806F8, ecx=1 << 26 | 1 << 28, edx=1 << 25),
        Entry(7, 0, SIGNIFICANT, eax=1, ebx=1 << 16, edx=1 << 24),
        Entry(7, 1, SIGNIFICANT, eax=1 << 4),
        Entry(0xD, 0, SIGNIFICANT, eax=0x602E7, ebx=576, ecx=11008, edx=0x40000000),
        Entry(0xD, 1, SIGNIFICANT, eax=0x1F, ecx=0x1800, edx=1),
    ]
)
words = st.integers(0, 0xFFFFFFFF)
entries = st.builds(Entry, words, words, words, words, words, words, words)


def test_a_leaf_is_found_by_number_and_index() -> None:
    assert TABLE.find(7, 1) is TABLE.entries[3]
    assert TABLE.find(0xD) is TABLE.entries[4]
    assert TABLE.find(0xD, 2) is None
    assert TABLE.find(2) is None


def test_an_index_counts_only_where_it_is_significant() -> None:
    assert TABLE.find(1, 5) is TABLE.entries[1]
    assert TABLE.find(7, 5) is None


def test_the_first_duplicate_wins() -> None:
    table = Cpuid([Entry(0xD, 0, 1, eax=3), Entry(0xD, 0, 1, eax=7), Entry(2, 3, 0, eax=5), Entry(2, 0, 0, eax=9)])
    assert table.get(0xD).eax == 3
    assert table.get(2, 0).eax == 5
    assert [entry.eax for entry in table.edit(0xD, eax=1)] == [1, 7, 5, 9]


def test_an_edit_does_not_change_a_duplicate_that_is_the_same_object() -> None:
    entry = Entry(0xD, 0, 1, eax=3)
    assert [e.eax for e in Cpuid([entry, entry]).edit(0xD, eax=1)] == [1, 3]


def test_an_absent_leaf_reads_as_zeros() -> None:
    assert TABLE.get(0x19, 4).registers == (0, 0, 0, 0)
    assert TABLE.get(0xD, 1).registers == (0x1F, 0, 0x1800, 1)


def test_an_edit_changes_neither_the_table_nor_other_entries() -> None:
    before = TABLE.entries
    edited = TABLE.edit(7, 1, eax=0, edx=0x123)
    assert TABLE.entries is before and TABLE.get(7, 1).eax == 1 << 4
    assert edited.get(7, 1) == Entry(7, 1, SIGNIFICANT, edx=0x123)
    assert [e for e in edited if (e.function, e.index) != (7, 1)] == [
        e for e in TABLE if (e.function, e.index) != (7, 1)
    ]


@pytest.mark.parametrize(
    ("leaf", "index", "flags"), [(4, 0, 1), (7, 2, 1), (0xB, 0, 1), (0xD, 18, 1), (0x19, 0, 0), (0x1D, 1, 1)]
)
def test_an_added_leaf_is_last_and_has_its_flags(leaf: int, index: int, flags: int) -> None:
    edited = TABLE.edit(leaf, index, ebx=0x42)
    assert len(edited) == len(TABLE) + 1
    assert edited.entries[-1] == Entry(leaf, index, flags, ebx=0x42)


def test_an_unknown_register_is_refused() -> None:
    with pytest.raises(TypeError):
        TABLE.edit(1, 0, rax=1)


def test_entries_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TABLE.entries[0].eax = 5  # type: ignore[misc]


def test_a_table_does_not_depend_on_the_list_it_was_made_of() -> None:
    rows = [Entry(1), Entry(2)]
    table = Cpuid(rows)
    rows.pop()
    assert len(table) == 2


def test_tables_of_the_same_entries_are_one_value() -> None:
    same = Cpuid(list(TABLE))
    assert same == TABLE and hash(same) == hash(TABLE) and len({same, TABLE}) == 1
    assert Cpuid(TABLE.entries[::-1]) != TABLE
    assert TABLE.entries != TABLE


def test_without_takes_out_exactly_what_it_names() -> None:
    assert [(e.function, e.index) for e in TABLE.without(0xD)] == [(0, 0), (1, 0), (7, 0), (7, 1)]
    assert [(e.function, e.index) for e in TABLE.without(7, 1)] == [(0, 0), (1, 0), (7, 0), (0xD, 0), (0xD, 1)]
    assert TABLE.without(0x19) == TABLE


@pytest.mark.parametrize(
    ("feature", "there"),
    [("XSAVE", True), ("AVX", True), ("OSXSAVE", False), ("SSE", True), ("AVX512F", True), ("AMX_TILE", True),
     ("AMX_BF16", False), ("AVX_VNNI", True), ("AVX512_BF16", False), ("XFD", True), ("XSAVES", True),
     ("XCR0_XTILEDATA", True), ("XCR0_BNDREGS", False), ("XSS_CET_U", True), ("LM", False)],
)  # fmt: skip
def test_a_feature_is_read_from_its_bit(feature: str, there: bool) -> None:
    assert TABLE.has(feature) is there


def test_an_unknown_feature_is_an_error() -> None:
    with pytest.raises(KeyError, match="no CPUID feature is called 'AVX1024'"):
        TABLE.has("AVX1024")


def test_every_feature_has_one_bit_that_exists() -> None:
    names = [name for bits in FEATURES.values() for name in bits.values()]
    assert len(names) == len(set(names))
    assert all(0 <= bit < 32 for bits in FEATURES.values() for bit in bits)
    assert all(register in cpuid.REGISTERS for _, _, register in FEATURES)


@pytest.mark.parametrize(
    ("feature", "leaf", "register", "bit"),
    [("XSAVE", (1, 0), "ecx", 26), ("OSXSAVE", (1, 0), "ecx", 27), ("AVX", (1, 0), "ecx", 28),
     ("FXSR", (1, 0), "edx", 24), ("AVX2", (7, 0), "ebx", 5), ("MPX", (7, 0), "ebx", 14),
     ("AVX512F", (7, 0), "ebx", 16), ("PKU", (7, 0), "ecx", 3), ("OSPKE", (7, 0), "ecx", 4),
     ("SHSTK", (7, 0), "ecx", 7), ("IBT", (7, 0), "edx", 20), ("AMX_BF16", (7, 0), "edx", 22),
     ("AMX_TILE", (7, 0), "edx", 24), ("AMX_INT8", (7, 0), "edx", 25), ("XSAVEOPT", (0xD, 1), "eax", 0),
     ("XSAVEC", (0xD, 1), "eax", 1), ("XSAVES", (0xD, 1), "eax", 3), ("XFD", (0xD, 1), "eax", 4),
     ("LM", (0x80000001, 0), "edx", 29)],
)  # fmt: skip
def test_a_feature_bit_is_that_of_the_manual(feature: str, leaf: tuple[int, int], register: str, bit: int) -> None:
    assert FEATURES[(*leaf, register)][bit] == feature
    assert Cpuid().edit(*leaf, **{register: 1 << bit}).has(feature)
    assert not Cpuid().edit(*leaf, **{register: ~(1 << bit) & 0xFFFFFFFF}).has(feature)


def test_xcr0_and_xss_are_put_together_from_both_halves() -> None:
    assert (TABLE.xcr0, TABLE.xss) == (0x40000000_000602E7, 0x1_00001800)
    assert Cpuid().xcr0 == Cpuid().xss == 0


@settings(max_examples=30)
@given(features=st.integers(0, (1 << 64) - 1))
def test_with_xcr0_offers_exactly_its_features(features: int) -> None:
    table = TABLE.with_xcr0(features)
    assert table.xcr0 == features
    assert (table.get(0xD).ebx, table.get(0xD).ecx, table.xss) == (576, 11008, TABLE.xss)
    assert len(table) == len(TABLE)


def test_equal_tables_do_not_differ() -> None:
    assert TABLE.compare(Cpuid(list(TABLE))) == []


def test_a_difference_names_leaf_register_values_and_features() -> None:
    other = TABLE.edit(1, ecx=1 << 26).edit(0xD, 0, ecx=2696, eax=0x207)
    assert TABLE.compare(other) == [
        "00000001.0 ecx: 14000000 04000000 (AVX)",
        "0000000d.0 eax: 000602e7 00000207 (XCR0_OPMASK XCR0_ZMM_HI256 XCR0_HI16_ZMM XCR0_XTILECFG XCR0_XTILEDATA)",
        "0000000d.0 ecx: 00002b00 00000a88",
    ]


def test_a_missing_leaf_is_a_difference() -> None:
    less = TABLE.without(7, 1)
    assert TABLE.compare(less) == ["00000007.1: only in the first table"]
    assert less.compare(TABLE) == ["00000007.1: only in the second table"]


def test_an_entry_prints_its_leaf_and_registers() -> None:
    assert str(TABLE.entries[4]) == "0000000d.0: eax=000602e7 ebx=00000240 ecx=00002b00 edx=40000000"
    assert str(Entry(0x80000008)) == "80000008.0: eax=00000000 ebx=00000000 ecx=00000000 edx=00000000"


def test_an_entry_lists_the_features_that_it_has() -> None:
    assert TABLE.entries[1].features() == ["XSAVE", "AVX", "SSE"]
    assert TABLE.entries[5].features() == ["XSAVEOPT", "XSAVEC", "XGETBV1", "XSAVES", "XFD", "XSS_CET_U", "XSS_CET_S"]
    assert TABLE.entries[0].features() == []


@settings(max_examples=30)
@given(rows=st.lists(entries, max_size=20))
def test_a_table_survives_its_way_through_the_kernels_struct(rows: list[Entry]) -> None:
    buffer = cpuid._buffer(rows)
    assert buffer.nent == len(rows)
    assert cpuid._table(buffer) == Cpuid(rows)


@settings(max_examples=30)
@given(one=st.lists(entries, max_size=5), place=words, index=words, value=words)
def test_an_edit_is_found_again(one: list[Entry], place: int, index: int, value: int) -> None:
    edited = Cpuid(one).edit(place, index, ecx=value)
    assert edited.get(place, index).ecx == value
    assert len(edited) - len(one) == (Cpuid(one).find(place, index) is None)


def test_an_empty_buffer_has_the_room_that_was_asked_for() -> None:
    buffer = cpuid._buffer(256)
    assert buffer.nent == 256
    buffer.entries[255].edx = 0x12345678
    assert cpuid._table(buffer).entries[255] == Entry(0, edx=0x12345678)


def test_the_hosts_cpuid_is_executed() -> None:
    leaf = cpuid.host(0)
    vendor = b"".join(value.to_bytes(4, "little") for value in (leaf.ebx, leaf.edx, leaf.ecx))
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    line = next(text for text in lines if text.startswith("vendor_id"))
    assert vendor.decode() == line.split()[-1]


@pytest.mark.kvm
def test_what_kvm_supports_is_read(kvm: Kvm) -> None:
    table = cpuid.supported(kvm)
    assert table.find(0) is not None and table.find(0x80000000) is not None
    assert table.has("FXSR") and table.has("SSE2")
