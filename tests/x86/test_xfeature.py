# SPDX-License-Identifier: Apache-2.0
"""The XSAVE components: their numbers, and bitmaps of them."""

from __future__ import annotations

import platform

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.kvm.bits import bits
from vmm.x86 import xfeature
from vmm.x86.xfeature import XFeature

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason=f"x86 code; this is {platform.machine()}")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0x0 (none)"),
        (7, "0x7 (FP SSE YMM)"),
        (1 << 42, "0x40000000000 (bit 42)"),
        (0x60000, "0x60000 (XTILECFG XTILEDATA)"),
    ],
)
def test_a_bitmap_is_described_by_its_components(value: int, text: str) -> None:
    assert xfeature.describe(value) == text


def test_a_component_has_the_number_of_the_manual() -> None:
    numbers = {"FP": 0, "SSE": 1, "YMM": 2, "BNDREGS": 3, "BNDCSR": 4, "OPMASK": 5, "ZMM_HI256": 6, "HI16_ZMM": 7,
               "PT": 8, "PKRU": 9, "PASID": 10, "CET_U": 11, "CET_S": 12, "HDC": 13, "UINTR": 14, "LBR": 15,
               "HWP": 16, "XTILECFG": 17, "XTILEDATA": 18, "APX": 19}  # fmt: skip
    assert {feature.name: int(feature) for feature in XFeature} == numbers
    assert (xfeature.AVX512, xfeature.MPX, xfeature.XTILE, xfeature.DYNAMIC) == (0xE0, 0x18, 0x60000, 0x40000)
    assert xfeature.SUPERVISOR == 0x1FD00


@given(value=st.integers(0, (1 << 64) - 1))
@settings(max_examples=30)
def test_no_bits_are_lost(value: int) -> None:
    found = list(bits(value))
    assert found == sorted(found) and xfeature.mask(*found) == value
