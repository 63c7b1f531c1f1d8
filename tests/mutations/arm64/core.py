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
from tests.mutations.registry import mutation
from vmm.arm64.registers import FPCR, FPSR, PSTATE, SYSTEM, sysreg, v, x
from vmm.kvm.ioctl import Interposer

_EL1T, _EL2H = 4, 9


def _mode(wanted: int) -> Condition:
    """Met by a write of PSTATE with this mode."""
    return lambda call: of(PSTATE)(call) and value(call)[0] & 0x1F == wanted


@mutation("fp.vregs-on-sve-einval")
def v3_can_be_read_with_sve() -> Interposer:
    return accept(GET, of(v(3)))


@mutation("fp.vregs-on-sve-einval")
def v31_can_be_written_with_sve() -> Interposer:
    return accept(SET, of(v(31)))


@mutation("fp.fpsr-fpcr-on-sve", "fp.vregs-nonsve-roundtrip")
def fpcr_is_not_kept() -> Interposer:
    return forget(FPCR)


@mutation("fp.fpsr-fpcr-on-sve", "fp.vregs-nonsve-roundtrip")
def fpsr_loses_its_saturation_bit() -> Interposer:
    return reading(flip(3, 8), FPSR)


@mutation("fp.fpsr-fpcr-on-sve")
def the_guest_has_another_fpsr() -> Interposer:
    return guest_left("execute", values(0, lambda old: old ^ 1), payload="sve")


@mutation("fp.vregs-nonsve-roundtrip")
def v31_loses_its_last_byte_in_reading() -> Interposer:
    return reading(flip(15), v(31))


@mutation("fp.vregs-nonsve-roundtrip")
def v0_is_written_wrong() -> Interposer:
    return writing(flip(0), v(0))


@mutation("fp.vregs-nonsve-roundtrip")
def the_guest_finds_another_v5() -> Interposer:
    return before_entry("verify", lambda guest, fd: change_now(v(5))(fd), payload="fpsimd")


@mutation("fp.vregs-nonsve-roundtrip")
def an_exit_changes_v9() -> Interposer:
    return after_run(change_now(v(9), 1 << 100))


@mutation("fp.fpcr-raw")
def fpcr_reads_0() -> Interposer:
    return reading(number(0), FPCR)


@mutation("core.bad-offset")
def the_second_half_of_x0_can_be_read() -> Interposer:
    return accept(GET, of(x(0) + 1))


@mutation("core.bad-offset")
def x0_can_be_written_in_32_bits() -> Interposer:
    return accept(SET, of(x(0) & ~(0xF << 52) | 2 << 52))


@mutation("core.bad-offset")
def there_is_a_core_register_behind_the_last() -> Interposer:
    return accept(GET, of(x(0) | 0xD8))


@mutation("core.bad-offset")
def a_refused_write_changes_x0() -> Interposer:
    return on_refusal(SET, lambda call: set_now(call.fd, x(0), 1))


@mutation("core.pstate-validate")
def pstate_takes_el2() -> Interposer:
    return accept(SET, _mode(_EL2H))


@mutation("core.pstate-validate")
def pstate_takes_aarch32() -> Interposer:
    return accept(SET, _mode(0x13))


@mutation("core.pstate-validate")
def pstate_does_not_take_el0() -> Interposer:
    return refuse(SET, errno.EINVAL, _mode(0))


@mutation("core.pstate-validate")
def a_refused_pstate_has_an_effect() -> Interposer:
    return on_refusal(SET, lambda call: set_now(call.fd, PSTATE, 0x3C0 | _EL1T))


def _top(nibble: int) -> Condition:
    return lambda call: int(call.argument.id) >> 60 == nibble


@mutation("onereg.arch-field-einval")
def a_register_of_x86_can_be_read() -> Interposer:
    return accept(GET, _top(2))


@mutation("onereg.arch-field-einval")
def a_register_of_riscv_can_be_written() -> Interposer:
    return accept(SET, _top(8))


@mutation("onereg.arch-field-einval")
def a_reserved_bit_of_the_id_is_ignored() -> Interposer:
    return accept(GET, of(x(0) | 1 << 40))


@mutation("onereg.sysreg-errors", "sve.zcr.hidden-nonsve")
def zcr_el1_can_be_read_without_sve() -> Interposer:
    return accept(GET, of(SYSTEM["ZCR_EL1"]))


@mutation("onereg.sysreg-errors", "sve.zcr.hidden-nonsve")
def zcr_el1_can_be_written_without_sve() -> Interposer:
    return accept(SET, of(SYSTEM["ZCR_EL1"]))


@mutation("onereg.sysreg-errors")
def a_register_that_does_not_exist_can_be_written() -> Interposer:
    return accept(SET, of(sysreg(3, 7, 15, 15, 7)))


@mutation("onereg.sysreg-errors")
def tpidr_el1_has_128_bits() -> Interposer:
    return accept(GET, of(SYSTEM["TPIDR_EL1"] & ~(0xF << 52) | 4 << 52))


@mutation("onereg.sysreg-errors")
def a_bad_address_is_no_error() -> Interposer:
    return accept(GET, at_bad_address)


@mutation("onereg.fuzz-no-oops")
def random_ids_get_a_strange_errno() -> Interposer:
    return drift(GET, errno.EIO)


@mutation("onereg.fuzz-no-oops")
def random_writes_get_a_strange_errno() -> Interposer:
    return drift(SET, errno.ENOTTY)


@mutation("onereg.fuzz-no-oops")
def the_vcpu_cannot_run_afterwards() -> Interposer:
    return refuse(COMPLETE, errno.EIO)
