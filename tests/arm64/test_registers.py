# SPDX-License-Identifier: Apache-2.0
"""Register ids of arm64 as numbers, names and parts: readable on a host of any architecture."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.arm64.registers import (
    FFR,
    FPCR,
    FPSR,
    PC,
    PSTATE,
    SLICES,
    SP,
    SVE,
    SYSTEM,
    VLS,
    Register,
    core,
    ffr,
    firmware,
    p,
    sysreg,
    v,
    x,
    z,
)
from vmm.arm64.system_registers import FEATURES, FIELDS, NAMES, field, fields, replaced

# As arch/arm64/include/uapi/asm/kvm.h composes them.
_KNOWN = {
    0x6030_0000_0010_0000: x(0), 0x6030_0000_0010_003C: x(30), 0x6030_0000_0010_003E: SP,
    0x6030_0000_0010_0040: PC, 0x6030_0000_0010_0042: PSTATE, 0x6030_0000_0010_0044: core("SP_EL1"),
    0x6040_0000_0010_0054: v(0), 0x6040_0000_0010_00D0: v(31),
    0x6020_0000_0010_00D4: FPSR, 0x6020_0000_0010_00D5: FPCR,
    0x6080_0000_0015_0000: z(0), 0x6080_0000_0015_03E0: z(31), 0x6080_0000_0015_03FF: z(31, 31),
    0x6050_0000_0015_0400: p(0), 0x6050_0000_0015_05E0: p(15),
    0x6050_0000_0015_0600: FFR, 0x6050_0000_0015_061F: ffr(31), 0x6060_0000_0015_FFFF: VLS,
    0x6030_0000_0013_C090: SYSTEM["ZCR_EL1"], 0x6030_0000_0013_C024: SYSTEM["ID_AA64ZFR0_EL1"],
    0x6030_0000_0013_C082: SYSTEM["CPACR_EL1"], 0x6030_0000_0013_DF19: SYSTEM["CNTV_CTL_EL0"],
    0x6030_0000_0014_0000: firmware(0), 0x6030_0000_0016_0002: firmware(2, bitmap=True),
}  # fmt: skip


@pytest.mark.parametrize(("number", "register"), _KNOWN.items(), ids=lambda value: str(value))
def test_an_id_is_the_kernels(number: int, register: Register) -> None:
    assert register == number


def test_the_ids_of_the_comparator_and_the_counter_are_exchanged_as_in_the_kernel() -> None:
    """Their ids are, against the architecture: KVM_REG_ARM_TIMER_CVAL has the counter's encoding."""
    assert SYSTEM["CNTV_CVAL_EL0"] & 0xFFFF == 0xDF02
    assert SYSTEM["CNTVCT_EL0"] & 0xFFFF == 0xDF1A


def test_no_two_registers_share_an_id_or_a_name() -> None:
    every = [*(x(n) for n in range(31)), *(v(n) for n in range(32)), *SVE, VLS, *SYSTEM.values(), SP, PC, FPSR, FPCR]
    assert len(set(every)) == len(every) == len({register.name for register in every})


@pytest.mark.parametrize("register", [*SVE, VLS, FPSR, PC, v(7), SYSTEM["ZCR_EL1"]], ids=str)
def test_a_register_has_the_size_of_its_group(register: Register) -> None:
    sizes = {"Z": 256, "P": 32, "FFR": 32, "VLS": 64, "FPSR": 4, "PC": 8, "V7": 16, "ZCR_EL1": 8}
    by_name = sizes.get(register.name) or sizes[register.name[0]]
    assert register.size == by_name


@given(st.integers(0, 31), st.integers(0, SLICES - 1))
def test_a_slice_prints_as_what_it_is(number: int, slice: int) -> None:
    suffix = f"[{slice}]" if slice else ""
    assert str(z(number, slice)) == f"Z{number}{suffix}"
    assert z(number, slice).slice == slice
    assert str(p(number % 16, slice)) == f"P{number % 16}{suffix}"
    assert str(ffr(slice)) == f"FFR{suffix}"


@given(*(st.integers(0, limit) for limit in (3, 7, 15, 15, 7)))
def test_the_encoding_of_a_system_register_is_kept(op0: int, op1: int, crn: int, crm: int, op2: int) -> None:
    encoding = (op0, op1, crn, crm, op2)
    register = sysreg(*encoding)
    assert (register.encoding, register.size, register.group) == (encoding, 8, 0x13)
    assert str(register) == (NAMES.get(encoding) or f"S{op0}_{op1}_C{crn}_C{crm}_{op2}")


@given(st.integers(0, (1 << 64) - 1))
def test_a_number_that_names_nothing_still_prints(number: int) -> None:
    register = Register(number)
    assert register.name and str(register) == register.name
    assert f"{register:#x}" == hex(number)


@given(st.sampled_from(sorted(FIELDS)), st.integers(0, (1 << 64) - 1), st.integers(0, 15), st.data())
def test_replacing_a_field_changes_no_other(register: str, value: int, new: int, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FIELDS[register])))
    changed = replaced(register, name, value, new)
    assert field(register, name, changed) == new
    assert (changed ^ value) & ~(0xF << FIELDS[register][name]) == 0
    assert fields(register, changed).get(name, 0) == new


@pytest.mark.parametrize("register", FIELDS)
def test_fields_do_not_overlap(register: str) -> None:
    shifts = sorted(FIELDS[register].values())
    assert all(low + 4 <= high for low, high in pairwise(shifts)) and shifts[-1] <= 60
    assert SYSTEM[register].encoding in FEATURES
