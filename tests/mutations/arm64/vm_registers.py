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
from tests.mutations.registry import lies, mutation
from vmm.arm64.registers import SYSTEM, firmware, sysreg
from vmm.conformance.arm64.instructions import mrs
from vmm.kvm.ioctl import Call, Interposer

OFFSET = "KVM_ARM_SET_COUNTER_OFFSET"
MIDR, MPIDR = sysreg(3, 0, 0, 0, 0), sysreg(3, 0, 0, 0, 5)
KEY = sysreg(3, 0, 2, 3, 1)
CONTROL = SYSTEM["CNTV_CTL_EL0"]


lies(
    "vm.mpidr",
    every_vcpu_is_the_first=lambda: reading(
        lambda view: number(int.from_bytes(view, "little") & ~0xFFFFFF)(view), MPIDR
    ),
    the_guest_reads_the_affinity_from_before=lambda: executed(mrs(3, 0, 0, 0, 5), values(0, lambda old: 1 << 31)),
    mpidr_el1_is_that_of_all_vcpus=lambda: once(SET, reading(number(1 << 31 | 0x030201), MPIDR), when=of(MPIDR)),
)

lies(
    "vm.implementation-ids",
    another_midr_el1_is_accepted=lambda: accept(SET, of(MIDR)),
    midr_el1_refuses_its_own_value=lambda: refuse(SET, errno.EINVAL, of(MIDR)),
    the_guest_reads_another_midr_el1=lambda: executed(mrs(3, 0, 0, 0, 0), values(0, lambda old: old ^ 0x10)),
)

lies(
    "vm.pauth-keys",
    the_last_key_is_not_listed=lambda: change_list(
        lambda found: [identifier for identifier in found if identifier != KEY]
    ),
    the_last_key_is_not_kept=lambda: forget(KEY),
    a_key_can_be_read_without_the_feature=lambda: accept(GET, of(KEY)),
)

lies(
    "vm.workaround-levels",
    a_better_mitigation_than_the_hosts_is_accepted=lambda: accept(SET, of(firmware(3))),
    a_lower_mitigation_is_refused=lambda: refuse(
        SET, errno.EINVAL, lambda call: of(firmware(1))(call) and not any(value(call))
    ),
)


@mutation("vm.timer-istatus")
def istatus_can_be_written() -> Interposer:
    written = bytearray(8)

    def remember(call: Call) -> None:
        written[:] = value(call)

    def show(call: Call) -> None:
        value(call)[:] = written

    return both(before(SET, remember, of(CONTROL)), after(GET, show, of(CONTROL)))


lies("vm.timer-istatus", a_far_comparator_has_been_passed=lambda: reading(flip(0, 4), CONTROL))

lies(
    "vm.timer-offset",
    an_offset_with_a_reserved_field_is_accepted=lambda: accept(OFFSET),
    an_offset_does_nothing=lambda: answer(OFFSET, 0, lambda call: call.argument.reserved == 0),
    the_guests_counter_can_still_be_set=lambda: executed(mrs(3, 3, 14, 0, 2), values(0, lambda old: 0x1000)),
    a_counter_with_an_offset_refuses_to_be_written=lambda: once(OFFSET, refuse(SET, errno.EBUSY, of(COUNTER))),
)

lies(
    "vm.no-vgic-undefined",
    the_guest_reads_icc_ctlr_el1_without_a_vgic=lambda: executed(mrs(3, 0, 12, 12, 4), values(15, lambda old: 0)),
    an_access_without_a_vgic_is_a_trap=lambda: executed(
        mrs(3, 0, 12, 12, 0), lambda guest: guest.set("esr", 0x18 << 26)
    ),
)
