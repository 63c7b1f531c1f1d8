# SPDX-License-Identifier: Apache-2.0
"""Which values of an ID register's field a clause has to see taken, and which refused."""

from __future__ import annotations

import pytest

from vmm.arm64.id_registers import REGISTERS
from vmm.conformance.arm64.id_fields import changes, least_of_all

_EVERY = (1 << 64) - 1


def _beside(register: str, name: str, number: int) -> tuple[int | None, int | None]:
    """The numbers of the field beside this one: what KVM takes, and what it refuses."""
    wanted = next(field for field in REGISTERS[register].fields if field.name == name)
    found = {field.name: (lower, higher) for field, lower, higher in changes(register, number << wanted.low, _EVERY)}
    lower, higher = found[name]
    return None if lower is None else wanted.of(lower), None if higher is None else wanted.of(higher)


@pytest.mark.parametrize(
    ("register", "name", "number", "lower", "higher"),
    [
        ("ID_AA64ISAR0_EL1", "AES", 2, 1, 3),
        ("ID_AA64ISAR0_EL1", "AES", 0, None, 1),
        ("ID_AA64ISAR0_EL1", "AES", 15, 14, None),
        ("ID_AA64MMFR0_EL1", "TGran4", 0, 15, 1),
        ("ID_AA64MMFR0_EL1", "TGran4", 8, None, 9),
        ("ID_AA64MMFR1_EL1", "SpecSEI", 0, 1, None),
        ("ID_AA64PFR0_EL1", "EL1", 1, None, 2),
        ("ID_AA64DFR0_EL1", "DebugVer", 6, None, 7),
        ("CTR_EL0", "L1Ip", 3, 2, 0),
        ("CTR_EL0", "L1Ip", 2, None, 0),
        ("ID_AA64FPFR0_EL1", "F8DP2", 1, 0, None),
        ("ID_AA64DFR0_EL1", "BRBE", 1, None, None),
    ],
)
def test_the_neighbours_of_a_fields_value_are_what_kvm_takes_and_what_it_refuses(
    register: str, name: str, number: int, lower: int | None, higher: int | None
) -> None:
    assert _beside(register, name, number) == (lower, higher)


def test_a_field_that_is_not_writable_as_a_whole_is_left_out() -> None:
    fields = [field.name for field, _, _ in changes("ID_AA64ISAR0_EL1", 0x22220, 0x0F0F0 | 0x100)]
    assert fields == ["AES", "SHA2"]


def test_all_writable_fields_are_lowered_at_once_and_no_others() -> None:
    assert least_of_all("ID_AA64ISAR0_EL1", 0x22220, 0x0F0F0) == 0x21210
