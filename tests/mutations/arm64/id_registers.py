# SPDX-License-Identifier: Apache-2.0
"""Lies about ID registers, SME, and what a guest is told of its CPU."""

from __future__ import annotations

import errno
from typing import Any

from tests.mutations.arm64.lies import (
    GET,
    INIT,
    SET,
    ZCR,
    change_list,
    executed,
    flip,
    forget,
    get_now,
    guest_left,
    number,
    of,
    reading,
    set_now,
    value,
    values,
)
from tests.mutations.lies import COMPLETE, RUN, Proceed, accept, after, nth, once, refuse
from tests.mutations.registry import mutation
from vmm._kvm import ffi
from vmm.arm64.registers import SYSTEM, Register
from vmm.conformance.clauses.arm64.id_registers import mrs
from vmm.kvm.ioctl import Call, Interposer

PFR0, PFR1, ZFR0 = SYSTEM["ID_AA64PFR0_EL1"], SYSTEM["ID_AA64PFR1_EL1"], SYSTEM["ID_AA64ZFR0_EL1"]
ISAR0, SMFR0 = SYSTEM["ID_AA64ISAR0_EL1"], SYSTEM["ID_AA64SMFR0_EL1"]
MASKS = "KVM_ARM_GET_REG_WRITABLE_MASKS"


# --- ID registers ---------------------------------------------------------------------------------


@mutation("id.pfr0-sve")
def kvm_says_the_opposite_about_sve() -> Interposer:
    return reading(flip(4), PFR0)


@mutation("id.pfr0-sve")
def the_guest_reads_the_opposite_about_sve() -> Interposer:
    return executed(None, values(0, lambda old: old ^ 1 << 32))


@mutation("id.pfr0-sve-not-writable", "sme.absent")
def any_id_register_can_be_written() -> Interposer:
    return accept(SET, of(PFR0, PFR1, ZFR0))


@mutation("id.pfr0-sve-not-writable")
def an_id_registers_own_value_is_refused() -> Interposer:
    return refuse(SET, errno.EINVAL, of(PFR0))


@mutation("id.pfr0-sve-not-writable")
def a_refused_write_of_pfr0_has_an_effect() -> Interposer:
    return once(SET, reading(flip(4), PFR0), refused=True)


@mutation("id.zfr0-raz-nonsve")
def zfr0_is_the_hosts_without_sve() -> Interposer:
    return reading(number(1), ZFR0)


@mutation("id.zfr0-raz-nonsve")
def zfr0_can_be_written_without_sve() -> Interposer:
    return accept(SET, of(ZFR0))


@mutation("id.zfr0-raz-nonsve")
def zfr0_is_hidden_without_sve() -> Interposer:
    return change_list(lambda found: [identifier for identifier in found if identifier != ZFR0])


@mutation("id.zfr0-downgrade")
def zfr0_can_be_raised_above_the_hosts() -> Interposer:
    return accept(SET, of(ZFR0))


@mutation("id.zfr0-downgrade")
def no_value_of_zfr0_is_another() -> Interposer:
    return forget(ZFR0)


@mutation("id.zfr0-downgrade")
def zfr0_is_0() -> Interposer:
    return reading(number(0), ZFR0)


@mutation("id.immutable-after-run")
def zfr0_can_be_changed_after_a_run() -> Interposer:
    return accept(SET, of(ZFR0))


@mutation("id.immutable-after-run")
def its_own_value_is_refused_after_a_run() -> Interposer:
    return refuse(SET, errno.EBUSY, of(ISAR0))


@mutation("id.immutable-after-run")
def a_refused_write_of_zfr0_has_an_effect() -> Interposer:
    return once(SET, reading(flip(0), ZFR0), refused=True)


@mutation("id.vm-scoped")
def an_id_register_cannot_be_lowered() -> Interposer:
    return forget(ZFR0, ISAR0)


@mutation("id.vm-scoped")
def an_id_register_is_the_vcpus_own() -> Interposer:
    lowered: dict[int, int] = {}

    def interposer(call: Call, proceed: Proceed) -> int:
        ours = call.name in (GET, SET) and of(ZFR0, ISAR0)(call)
        old = get_now(call.fd, Register(call.argument.id)) if ours and call.name == SET else b""
        result = proceed()
        if old:
            lowered[call.fd] = int.from_bytes(old, "little")
        elif ours and lowered and call.fd not in lowered:
            number(next(iter(lowered.values())))(value(call))
        return result

    return interposer


@mutation("id.vm-scoped")
def an_id_register_is_that_of_all_vms() -> Interposer:
    return once(SET, reading(number(0), ZFR0, ISAR0), when=of(ZFR0, ISAR0))


@mutation("id.reinit-preserves")
def a_second_init_resets_id_registers() -> Interposer:
    return once(INIT, reading(flip(0), ZFR0, ISAR0), when=nth(2))


@mutation("id.guest-equals-user")
def the_guest_reads_another_id_register() -> Interposer:
    return executed(mrs(3, 0, 0, 6, 1), values(0, lambda old: old ^ 1))


@mutation("id.guest-equals-user")
def kvm_reads_another_id_register_than_the_guest() -> Interposer:
    return reading(flip(0), SYSTEM["ID_AA64MMFR0_EL1"])


@mutation("id.guest-equals-user")
def a_reserved_id_register_is_undefined() -> Interposer:
    return executed(mrs(3, 0, 0, 7, 7), values(15, lambda old: 1))


@mutation("id.gic-changes-at-first-run")
def the_first_run_gives_a_gic() -> Interposer:
    return once(COMPLETE, reading(flip(3), PFR0), refused=True)


@mutation("id.gic-changes-at-first-run")
def the_first_run_takes_more_than_the_gic() -> Interposer:
    return once(COMPLETE, reading(flip(0), PFR0), refused=True)


@mutation("id.gic-changes-at-first-run")
def the_gic_can_be_had_back() -> Interposer:
    return accept(SET, of(PFR0))


def _masks(call: Call) -> Any:
    return ffi.cast("uint64_t *", call.argument.addr)


def _mask_is(crm: int, op2: int, new: int) -> Interposer:
    """The mask of one of the AArch64 feature registers."""

    def change(call: Call) -> None:
        _masks(call)[crm << 3 | op2] = new

    return after(MASKS, change)


@mutation("id.writable-masks")
def the_mask_of_zfr0_is_empty() -> Interposer:
    return _mask_is(4, 4, 0)


@mutation("id.writable-masks")
def the_mask_of_pfr0_has_sve() -> Interposer:
    return _mask_is(4, 0, 0xF << 32)


@mutation("id.writable-masks")
def a_bit_outside_of_the_mask_can_be_changed() -> Interposer:
    return _mask_is(6, 0, 0)


@mutation("id.writable-masks")
def any_range_of_masks_is_accepted() -> Interposer:
    return accept(MASKS)


# --- SME ------------------------------------------------------------------------------------------


@mutation("sme.absent")
def a_guest_is_told_that_it_has_sme() -> Interposer:
    return reading(flip(3), PFR1)


@mutation("sme.absent", "reglist.no-sme")
def smfr0_is_the_hosts() -> Interposer:
    return reading(flip(7, 0x80), SMFR0)


@mutation("sme.absent")
def smstart_works_in_the_guest() -> Interposer:
    return executed(0xD503477F, values(15, lambda old: 0))


@mutation("sme.absent")
def rdsvl_is_a_trap_of_sme() -> Interposer:
    return executed(0x04BF5820, lambda guest: guest.set("esr", 0x1D << 26))


@mutation("sve.zcr.reset-zero", "init.reinit-zeroes-sve")
def init_leaves_zcr_el1() -> Interposer:
    return after(INIT, lambda call: set_now(call.fd, ZCR, 3), nth(2))


@mutation("sve.zcr.reset-zero")
def a_fresh_zcr_el1_is_the_longest() -> Interposer:
    return reading(number(15), ZCR)


def _guest_reads(index: int, change: int) -> Interposer:
    return guest_left("rdvl", values(index, lambda old: old ^ change), payload="sve")


@mutation("sve.zcr.guest-user-agree")
def the_guest_reads_another_zcr_el1() -> Interposer:
    return _guest_reads(1, 1)


@mutation("sve.zcr.guest-user-agree")
def the_guest_has_another_length_than_zcr_el1_says() -> Interposer:
    return _guest_reads(0, 0x30)


@mutation("sve.zcr.guest-user-agree")
def zcr_el1_cannot_be_written_after_a_run() -> Interposer:
    return once(RUN, refuse(SET, errno.EPERM, of(ZCR)))


@mutation("sve.zcr.guest-user-agree")
def the_guests_zcr_el1_is_not_read_back() -> Interposer:
    return reading(flip(0, 4), ZCR)


@mutation("sve.zcr.verbatim")
def reserved_bits_of_zcr_el1_read_0() -> Interposer:
    return reading(number(0xF), ZCR)
