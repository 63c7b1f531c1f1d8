# SPDX-License-Identifier: Apache-2.0
"""Lies about core registers, FPSIMD registers and ids that name nothing."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import (
    GET,
    SET,
    at_bad_address,
    before_entry,
    change_now,
    flip,
    forget,
    guest_left,
    number,
    of,
    on_refusal,
    reading,
    set_now,
    value,
    values,
    writing,
)
from tests.mutations.lies import COMPLETE, Condition, accept, after_run, drift, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import FPCR, FPSR, PSTATE, SYSTEM, sysreg, v, x

_EL1T, _EL2H = 4, 9


def _mode(wanted: int) -> Condition:
    """Met by a write of PSTATE with this mode."""
    return lambda call: of(PSTATE)(call) and value(call)[0] & 0x1F == wanted


lies(
    "fp.vregs-on-sve-einval",
    v3_can_be_read_with_sve=lambda: accept(GET, of(v(3))),
    v31_can_be_written_with_sve=lambda: accept(SET, of(v(31))),
)

lies(
    "fp.fpsr-fpcr-on-sve",
    "fp.vregs-nonsve-roundtrip",
    fpcr_is_not_kept=lambda: forget(FPCR),
    fpsr_loses_its_saturation_bit=lambda: reading(flip(3, 8), FPSR),
)

lies(
    "fp.fpsr-fpcr-on-sve",
    the_guest_has_another_fpsr=lambda: guest_left("execute", values(0, lambda old: old ^ 1), payload="sve"),
)

lies(
    "fp.vregs-nonsve-roundtrip",
    v31_loses_its_last_byte_in_reading=lambda: reading(flip(15), v(31)),
    v0_is_written_wrong=lambda: writing(flip(0), v(0)),
    the_guest_finds_another_v5=lambda: before_entry(
        "verify", lambda guest, fd: change_now(v(5))(fd), payload="fpsimd"
    ),
    an_exit_changes_v9=lambda: after_run(change_now(v(9), 1 << 100)),
)

lies("fp.fpcr-raw", fpcr_reads_0=lambda: reading(number(0), FPCR))

lies(
    "core.bad-offset",
    the_second_half_of_x0_can_be_read=lambda: accept(GET, of(x(0) + 1)),
    x0_can_be_written_in_32_bits=lambda: accept(SET, of(x(0) & ~(0xF << 52) | 2 << 52)),
    there_is_a_core_register_behind_the_last=lambda: accept(GET, of(x(0) | 0xD8)),
    a_refused_write_changes_x0=lambda: on_refusal(SET, lambda call: set_now(call.fd, x(0), 1)),
)

lies(
    "core.pstate-validate",
    pstate_takes_el2=lambda: accept(SET, _mode(_EL2H)),
    pstate_takes_aarch32=lambda: accept(SET, _mode(0x13)),
    pstate_does_not_take_el0=lambda: refuse(SET, errno.EINVAL, _mode(0)),
    a_refused_pstate_has_an_effect=lambda: on_refusal(SET, lambda call: set_now(call.fd, PSTATE, 0x3C0 | _EL1T)),
)


def _top(nibble: int) -> Condition:
    return lambda call: int(call.argument.id) >> 60 == nibble


lies(
    "onereg.arch-field-einval",
    a_register_of_x86_can_be_read=lambda: accept(GET, _top(2)),
    a_register_of_riscv_can_be_written=lambda: accept(SET, _top(8)),
    a_reserved_bit_of_the_id_is_ignored=lambda: accept(GET, of(x(0) | 1 << 40)),
)

lies(
    "onereg.sysreg-errors",
    "sve.zcr.hidden-nonsve",
    zcr_el1_can_be_read_without_sve=lambda: accept(GET, of(SYSTEM["ZCR_EL1"])),
    zcr_el1_can_be_written_without_sve=lambda: accept(SET, of(SYSTEM["ZCR_EL1"])),
)

lies(
    "onereg.sysreg-errors",
    a_register_that_does_not_exist_can_be_written=lambda: accept(SET, of(sysreg(3, 7, 15, 15, 7))),
    tpidr_el1_has_128_bits=lambda: accept(GET, of(SYSTEM["TPIDR_EL1"] & ~(0xF << 52) | 4 << 52)),
    a_bad_address_is_no_error=lambda: accept(GET, at_bad_address),
)

lies(
    "onereg.fuzz-no-oops",
    random_ids_get_a_strange_errno=lambda: drift(GET, errno.EIO),
    random_writes_get_a_strange_errno=lambda: drift(SET, errno.ENOTTY),
    the_vcpu_cannot_run_afterwards=lambda: refuse(COMPLETE, errno.EIO),
)
