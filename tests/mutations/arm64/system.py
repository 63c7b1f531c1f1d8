# SPDX-License-Identifier: Apache-2.0
"""Lies about system registers: feature registers, traps, timers."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import (
    COUNTER,
    GET,
    SET,
    change_list,
    executed,
    flip,
    forget,
    number,
    of,
    reading,
    value,
    values,
)
from tests.mutations.lies import accept, after, answer, before, both, once, refuse
from tests.mutations.registry import mutation
from vmm.arm64.registers import SYSTEM, firmware, sysreg
from vmm.conformance.clauses.arm64.id_registers import mrs
from vmm.kvm.ioctl import Call, Interposer

OFFSET = "KVM_ARM_SET_COUNTER_OFFSET"
MIDR, MPIDR = sysreg(3, 0, 0, 0, 0), sysreg(3, 0, 0, 0, 5)
KEY = sysreg(3, 0, 2, 3, 1)
CONTROL = SYSTEM["CNTV_CTL_EL0"]


# --- ID registers ---------------------------------------------------------------------------------


@mutation("id.zfr0-is-advisory")
def a_hidden_instruction_is_undefined() -> Interposer:
    return executed(None, values(15, lambda old: 1))


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
