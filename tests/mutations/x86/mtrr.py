# SPDX-License-Identifier: Apache-2.0
"""Lies about MTRRs: their registers, and what loads cost under them."""

from __future__ import annotations

from tests.mutations.lies import after, answer, once, succeed_with
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import change_msr, of_msr
from tests.mutations.x86.lies import (
    SLOW,
    after_msr_entry,
    batch_value,
    during,
    guest_did_not_fault,
    guest_faulted,
    timed,
)
from vmm.kvm.ioctl import Interposer
from vmm.x86.memory_types import MemoryType
from vmm.x86.msr_names import Msr

GET, SET = "KVM_GET_MSRS", "KVM_SET_MSRS"
_FIXED, _BASE, _MASK = 0x250, 0x206, 0x207


lies(
    "mtrr.cap",
    there_are_ten_variable_ranges=lambda: after(GET, change_msr(Msr.MTRRCAP, lambda value: 0x50A)),
    ia32_mtrrcap_can_be_written=lambda: succeed_with(SET, lambda call, result: 1, of_msr(Msr.MTRRCAP)),
    the_guest_sees_smrr=lambda: after_msr_entry("rdmsr", lambda shared: shared.set("values", 0xD08), Msr.MTRRCAP),
    the_guest_may_write_ia32_mtrrcap=lambda: after_msr_entry("wrmsr", guest_did_not_fault, Msr.MTRRCAP),
    the_last_range_of_ia32_mtrrcap_is_missing=lambda: answer(SET, 0, of_msr(0x20F)),
    the_last_fixed_range_is_missing=lambda: answer(SET, 0, of_msr(0x26F)),
    there_is_no_write_combining_in_spite_of_its_bit=lambda: answer(SET, 0, of_msr(Msr.MTRR_DEF_TYPE)),
)

lies(
    "mtrr.emulated-only",
    the_mtrrs_are_on_at_reset=lambda: after(GET, change_msr(Msr.MTRR_DEF_TYPE, lambda value: value | 0xC00)),
    a_fixed_range_cannot_be_set=lambda: answer(SET, 0, of_msr(0x26F)),
    a_variable_range_is_not_kept=lambda: once(SET, after(GET, change_msr(0x20E, lambda value: value & ~0xFF))),
    the_guest_may_not_write_a_mask=lambda: after_msr_entry("wrmsr", guest_faulted, 0x201),
    the_guest_reads_another_default_type=lambda: after_msr_entry(
        "rdmsr", lambda shared: shared.set("values", 0xC00), Msr.MTRR_DEF_TYPE
    ),
)


def _accepted(index: int, value: int) -> Interposer:
    return succeed_with(SET, lambda call, result: 1, lambda call: batch_value(call, index) == value)


lies(
    "mtrr.validation",
    default_type_2_is_accepted=lambda: _accepted(Msr.MTRR_DEF_TYPE, 2),
    bit_8_of_the_default_type_is_accepted=lambda: _accepted(Msr.MTRR_DEF_TYPE, 0x106),
    type_3_of_a_fixed_range_is_accepted=lambda: _accepted(_FIXED, 3),
    bit_11_of_a_base_is_accepted=lambda: _accepted(_BASE, 1 << 11 | 6),
    bit_10_of_a_mask_is_accepted=lambda: _accepted(_MASK, 1 << 10),
    a_base_beyond_the_guests_memory_is_accepted=lambda: _accepted(_BASE, 1 << 63 | 6),
    there_is_a_ninth_range=lambda: succeed_with(SET, lambda call, result: 1, of_msr(0x210)),
    a_refused_default_type_is_kept=lambda: once(SET, after(GET, change_msr(Msr.MTRR_DEF_TYPE, lambda value: 2))),
    the_guest_may_write_a_reserved_bit=lambda: after_msr_entry("wrmsr", guest_did_not_fault, _MASK),
    a_reserved_default_type_is_an_invalid_opcode=lambda: after_msr_entry(
        "wrmsr", lambda shared: shared.set("vector", 6), Msr.MTRR_DEF_TYPE
    ),
)


@mutation("mtrr.no-effect")
def uncached_mtrrs_slow_the_guest_down() -> Interposer:
    lie = timed("loads", SLOW, MemoryType.WB)
    return during(SET, lambda call: batch_value(call, Msr.MTRR_DEF_TYPE) == 1 << 11, lie)


lies("mtrr.no-effect", the_default_type_cannot_be_set=lambda: answer(SET, 0, of_msr(Msr.MTRR_DEF_TYPE)))
