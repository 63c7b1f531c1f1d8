# SPDX-License-Identifier: Apache-2.0
"""The rules for XCR0 against a table that is built another way."""

from __future__ import annotations

import itertools
import platform

import pytest

if platform.machine() != "x86_64":
    pytest.skip(f"x86 code; this is {platform.machine()}", allow_module_level=True)

from vmm.conformance.clauses.x86.xcrs import valid

# What can be switched on as a whole, each with all it rests on (Intel SDM volume 1, 13.3): a valid XCR0 is x87
# and any union of these.
SSE, AVX, AVX512, MPX, PKRU, AMX = 0x2, 0x6, 0xE6, 0x18, 0x200, 0x60000
FEATURES = (SSE, AVX, AVX512, MPX, PKRU, AMX)
EVERYTHING = 0x602FF
LEGAL = {
    1 | sum({1 << bit for block in chosen for bit in range(64) if block >> bit & 1})
    for count in range(len(FEATURES) + 1)
    for chosen in itertools.combinations(FEATURES, count)
}
BITS = [bit for bit in range(20) if EVERYTHING >> bit & 1]
ALL_VALUES = [sum(1 << bit for bit, on in zip(BITS, picked, strict=True) if on)
              for picked in itertools.product((0, 1), repeat=len(BITS))]  # fmt: skip


def test_the_table_itself_is_right() -> None:
    # x87; x87+SSE; +AVX; +AVX-512: four chains, times MPX, PKRU and AMX on or off.
    assert len(LEGAL) == 4 * 2 * 2 * 2
    assert len(ALL_VALUES) == 1 << 11
    assert {1, 3, 7, 0xE7, 0x207, 0x602E7, 0x1F, 0x60003} <= LEGAL
    assert not {0, 2, 5, 0x27, 0xC7, 0xE3, 0x9, 0x20007, 0x40007} & LEGAL


@pytest.mark.parametrize("offered", [EVERYTHING, 0x602E7, 0x2E7, 0xE7, 0x207, 0x1F, 7, 3, 1])
def test_the_rules_agree_with_the_table(offered: int) -> None:
    wrong = [hex(value) for value in ALL_VALUES if valid(value, offered) != (value in LEGAL and not value & ~offered)]
    assert wrong == []


@pytest.mark.parametrize("bit", [8, *range(10, 17), 19, 20, 31, 32, 62, 63])
def test_a_bit_that_is_not_offered_is_invalid(bit: int) -> None:
    assert not valid(7 | 1 << bit, EVERYTHING)


@pytest.mark.parametrize("offered", [0, 2, 6])
def test_x87_needs_no_offer(offered: int) -> None:
    # KVM always allows XCR0 = 1, also to a guest without XSAVE in its CPUID.
    assert valid(1, offered)
    assert not valid(0, offered)
