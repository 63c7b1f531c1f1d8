# SPDX-License-Identifier: Apache-2.0
"""Lies about ID registers, SME, and what a guest is told of its CPU."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tests.mutations.arm64_lies import (
    GET,
    INIT,
    SET,
    change_list,
    flip,
    forget,
    get_now,
    guest_left,
    number,
    of,
    reading,
    value,
    values,
)
from tests.mutations.lies import COMPLETE, Proceed, Shared, accept, after, answer, before, both, nth, once, refuse
from tests.mutations.registry import mutation
from vmm._kvm import ffi
from vmm.arm64.registers import SYSTEM, Register, firmware, sysreg
from vmm.conformance.clauses.arm64.id_registers import mrs
from vmm.kvm.ioctl import Call, Interposer

PFR0, PFR1, ZFR0 = SYSTEM["ID_AA64PFR0_EL1"], SYSTEM["ID_AA64PFR1_EL1"], SYSTEM["ID_AA64ZFR0_EL1"]
ISAR0, SMFR0 = SYSTEM["ID_AA64ISAR0_EL1"], SYSTEM["ID_AA64SMFR0_EL1"]
MASKS, OFFSET = "KVM_ARM_GET_REG_WRITABLE_MASKS", "KVM_ARM_SET_COUNTER_OFFSET"
MIDR, MPIDR = sysreg(3, 0, 0, 0, 0), sysreg(3, 0, 0, 0, 5)
KEY = sysreg(3, 0, 2, 3, 1)
CONTROL, COUNTER = SYSTEM["CNTV_CTL_EL0"], SYSTEM["CNTVCT_EL0"]


def executed(instruction: int | None, change: Callable[[Shared], object], payload: str = "hello") -> Interposer:
    """Spoil what the guest left behind an instruction; None is any."""
    when = None if instruction is None else lambda guest: bool(guest.get("params") == instruction)
    return guest_left("execute", change, payload=payload, when=when)


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


@mutation("id.zfr0-is-advisory")
def a_hidden_instruction_is_undefined() -> Interposer:
    return executed(None, values(15, lambda old: 1))


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


# --- identities, keys, mitigations, timers --------------------------------------------------------


@mutation("vm.mpidr")
def every_vcpu_is_the_first() -> Interposer:
    return reading(lambda view: number(int.from_bytes(view, "little") & ~0xFFFFFF)(view), MPIDR)


@mutation("vm.mpidr")
def the_guest_reads_the_affinity_from_before() -> Interposer:
    return executed(mrs(3, 0, 0, 0, 5), values(0, lambda old: 1 << 31))


@mutation("vm.mpidr")
def mpidr_el1_is_that_of_all_vcpus() -> Interposer:
    return once(SET, reading(number(1 << 31 | 0x030201), MPIDR), when=of(MPIDR))


@mutation("vm.implementation-ids")
def another_midr_el1_is_accepted() -> Interposer:
    return accept(SET, of(MIDR))


@mutation("vm.implementation-ids")
def midr_el1_refuses_its_own_value() -> Interposer:
    return refuse(SET, errno.EINVAL, of(MIDR))


@mutation("vm.implementation-ids")
def the_guest_reads_another_midr_el1() -> Interposer:
    return executed(mrs(3, 0, 0, 0, 0), values(0, lambda old: old ^ 0x10))


@mutation("vm.pauth-keys")
def the_last_key_is_not_listed() -> Interposer:
    return change_list(lambda found: [identifier for identifier in found if identifier != KEY])


@mutation("vm.pauth-keys")
def the_last_key_is_not_kept() -> Interposer:
    return forget(KEY)


@mutation("vm.pauth-keys")
def a_key_can_be_read_without_the_feature() -> Interposer:
    return accept(GET, of(KEY))


@mutation("vm.workaround-levels")
def a_better_mitigation_than_the_hosts_is_accepted() -> Interposer:
    return accept(SET, of(firmware(3)))


@mutation("vm.workaround-levels")
def a_lower_mitigation_is_refused() -> Interposer:
    return refuse(SET, errno.EINVAL, lambda call: of(firmware(1))(call) and not any(value(call)))


@mutation("vm.timer-istatus")
def istatus_can_be_written() -> Interposer:
    written = bytearray(8)

    def remember(call: Call) -> None:
        written[:] = value(call)

    def show(call: Call) -> None:
        value(call)[:] = written

    return both(before(SET, remember, of(CONTROL)), after(GET, show, of(CONTROL)))


@mutation("vm.timer-istatus")
def a_far_comparator_has_been_passed() -> Interposer:
    return reading(flip(0, 4), CONTROL)


@mutation("vm.timer-offset")
def an_offset_with_a_reserved_field_is_accepted() -> Interposer:
    return accept(OFFSET)


@mutation("vm.timer-offset")
def an_offset_does_nothing() -> Interposer:
    return answer(OFFSET, 0, lambda call: call.argument.reserved == 0)


@mutation("vm.timer-offset")
def the_guests_counter_can_still_be_set() -> Interposer:
    return executed(mrs(3, 3, 14, 0, 2), values(0, lambda old: 0x1000))


@mutation("vm.timer-offset")
def a_counter_with_an_offset_refuses_to_be_written() -> Interposer:
    return once(OFFSET, refuse(SET, errno.EBUSY, of(COUNTER)))


@mutation("vm.no-vgic-undefined")
def the_guest_reads_icc_ctlr_el1_without_a_vgic() -> Interposer:
    return executed(mrs(3, 0, 12, 12, 4), values(15, lambda old: 0))


@mutation("vm.no-vgic-undefined")
def an_access_without_a_vgic_is_a_trap() -> Interposer:
    return executed(mrs(3, 0, 12, 12, 0), lambda guest: guest.set("esr", 0x18 << 26))


@mutation("vm.timer-swapped-ids")
def the_comparator_has_the_counters_id() -> Interposer:
    other = {int(COUNTER): SYSTEM["CNTV_CVAL_EL0"], int(SYSTEM["CNTV_CVAL_EL0"]): COUNTER}

    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name in (GET, SET) and int(call.argument.id) in other:
            call.argument.id = int(other[int(call.argument.id)])
        return proceed()

    return interposer


@mutation("vm.timer-swapped-ids")
def the_guests_counter_does_not_begin_where_it_was_set() -> Interposer:
    return forget(COUNTER)


@mutation("vm.timer-swapped-ids")
def the_counter_stands_still() -> Interposer:
    return reading(number(1 << 40), COUNTER)
