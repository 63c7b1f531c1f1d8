# SPDX-License-Identifier: Apache-2.0
"""Registers by field, and tiles that changed places, are named as what they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.conformance.x86.tiles import TileImage, explain
from vmm.x86.fields import BY_MSR, Cet, Cr4, Register, TileInfo, TmulInfo, Xcr0, Xfd, Xss, describe_msr


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Xcr0(0x602E7), "0x602e7 (FP SSE YMM OPMASK ZMM_HI256 HI16_ZMM PKRU XTILECFG XTILEDATA)"),
        (Xss(0x1800), "0x1800 (CET_U CET_S)"),
        (Xfd(1 << 18), "0x40000 (XTILEDATA)"),
        (Xfd(1 << 18 | 4), "0x40004 (XTILEDATA bit 2)"),
        (Cet(0x7000000C05), "0x7000000c05 (SH_STK_EN ENDBR_EN SUPPRESS TRACKER EB_LEG_BITMAP_BASE=0x7000000)"),
        (Cr4(0x840620), "0x840620 (PAE OSFXSR OSXMMEXCPT OSXSAVE CET)"),
        (Cr4(0), "0x0 (none)"),
    ],
)
def test_a_field_is_printed_by_its_name(value: Register, text: str) -> None:
    assert str(value) == text


def test_a_field_is_an_attribute() -> None:
    assert (Cr4(0x40620).OSXSAVE, Cr4(0x40620).CET) == (1, 0)
    assert Cet(0x5000).EB_LEG_BITMAP_BASE == 5
    with pytest.raises(AttributeError, match="Cr4 has no field NOSUCH"):
        Cr4(0).NOSUCH  # noqa: B018


def test_cpuid_leaf_1d_is_read_as_the_manual_lays_it_out() -> None:
    info = TileInfo.from_registers((0x04002000, 0x00080040, 0x10, 0))
    sizes = (info.total_tile_bytes, info.bytes_per_tile, info.bytes_per_row, info.max_names, info.max_rows)
    assert sizes == (8192, 1024, 64, 8, 16)
    limits = TmulInfo(0x4010)
    assert (limits.tmul_maxk, limits.tmul_maxn) == (16, 64)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 63))
def test_a_flipped_bit_is_the_one_difference(value: int, bit: int) -> None:
    (found,) = Cr4(value).compare(value ^ 1 << bit)
    name = next((name for name, field in Cr4.fields.items() if field == bit), f"bit {bit}")
    assert found == name


def test_an_msr_is_described_by_its_fields() -> None:
    assert describe_msr(0x1C4, 1 << 18) == "0x40000 (XTILEDATA)"
    assert describe_msr(0x277, 6) == "0x6"
    assert describe_msr(0x277, None) == "unreadable"
    assert set(BY_MSR) == {0x1C4, 0x1C5, 0x6A0, 0x6A2, 0xDA0}


def _changed(*moves: tuple[slice, slice]) -> list[str]:
    """Exchange parts of the tiles and explain the difference."""
    data = TileImage.random(1).data
    seen = bytearray(data)
    for first, second in moves:
        seen[first], seen[second] = data[second], data[first]
    return explain(data, bytes(seen))


def _row(tile: int, row: int) -> slice:
    start = 64 + 1024 * tile + 64 * row
    return slice(start, start + 64)


def test_two_rows_that_changed_places_are_named() -> None:
    assert _changed((_row(2, 3), _row(2, 7))) == ["TMM2 row 3 and TMM2 row 7 are swapped"]
    assert _changed((_row(0, 15), _row(7, 0))) == ["TMM0 row 15 and TMM7 row 0 are swapped"]


def test_two_tiles_that_changed_places_are_named() -> None:
    tiles = [slice(64 + 1024 * n, 64 + 1024 * (n + 1)) for n in range(8)]
    assert _changed((tiles[1], tiles[4])) == ["TMM1 and TMM4 are swapped"]


def test_one_changed_byte_is_named() -> None:
    data = TileImage.random(1).data
    seen = bytearray(data)
    seen[64 + 5 * 1024 + 9 * 64 + 33] ^= 0xFF
    (line,) = explain(data, bytes(seen))
    assert line.startswith("TMM5 row 9 byte 33: expected 0x")
    seen = bytearray(data)
    seen[17] = 1
    (line,) = explain(data, bytes(seen))
    assert line == "TILECFG byte 17: expected 0x00, observed 0x01"


def test_many_changed_bytes_of_a_row_are_gathered() -> None:
    data = TileImage.random(1).data
    seen = bytearray(data)
    seen[_row(6, 2)] = bytes(64)
    assert explain(data, bytes(seen)) == ["TMM6 row 2: 64 of 64 bytes differ"]
