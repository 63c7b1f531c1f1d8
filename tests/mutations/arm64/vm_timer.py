# SPDX-License-Identifier: Apache-2.0
"""Lies about the generic timer."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import COUNTER, SET, executed, flip, forget, number, of, reading, value, values
from tests.mutations.lies import RUN, Proceed, after, once, refuse
from tests.mutations.registry import lies, mutation
from vmm.arm64.registers import SYSTEM
from vmm.conformance.arm64.instructions import mrs
from vmm.kvm.ioctl import Call, Interposer

_CTL, _CVAL = SYSTEM["CNTV_CTL_EL0"], SYSTEM["CNTV_CVAL_EL0"]
_PHYSICAL_CTL, _PHYSICAL_CVAL, _PHYSICAL = SYSTEM["CNTP_CTL_EL0"], SYSTEM["CNTP_CVAL_EL0"], SYSTEM["CNTPCT_EL0"]
_MRS_CTL, _MRS_CVAL, _MRS_CNT = mrs(3, 3, 14, 3, 1), mrs(3, 3, 14, 3, 2), mrs(3, 3, 14, 0, 2)
_MRS_PHYSICAL_CTL, _MRS_PHYSICAL = mrs(3, 3, 14, 2, 1), mrs(3, 3, 14, 0, 1)

lies(
    "vm.timer-registers",
    the_comparator_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(_CVAL)),
    the_control_is_not_kept=lambda: forget(_CTL),
    the_guest_has_another_comparator=lambda: executed(_MRS_CVAL, values(0, lambda old: old ^ 1)),
    a_timer_is_undefined_for_the_guest=lambda: executed(_MRS_CTL, values(15, lambda old: 1)),
    what_the_guest_wrote_is_not_saved=lambda: once(RUN, reading(flip(2), _CVAL)),
    the_guests_control_is_not_saved=lambda: once(RUN, reading(flip(0, 1), _CTL)),
    a_comparator_that_has_been_passed_does_not_show=lambda: executed(_MRS_CTL, values(0, lambda old: old & 3)),
    the_physical_timer_is_on=lambda: executed(_MRS_PHYSICAL_CTL, values(0, lambda old: old ^ 1)),
    the_physical_comparator_is_not_saved=lambda: once(RUN, reading(flip(3), _PHYSICAL_CVAL)),
    the_physical_control_is_not_kept=lambda: forget(_PHYSICAL_CTL),
)

lies(
    "vm.timer-counter-shared",
    the_counter_cannot_be_written=lambda: refuse(SET, errno.EINVAL, _far),
    the_guest_has_a_counter_of_its_own=lambda: executed(_MRS_CNT, values(0, lambda old: 5)),
    the_guests_counter_is_undefined=lambda: executed(_MRS_CNT, values(15, lambda old: 1)),
)


def _far(call: Call) -> bool:
    """Met by a write of the counter that is not 0."""
    return of(COUNTER)(call) and any(value(call))


@mutation("vm.timer-counter-shared")
def a_counter_is_the_vcpus_own() -> Interposer:
    written: set[int] = set()

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == SET and _far(call):
            written.add(call.fd)
        elif call.name == "KVM_GET_ONE_REG" and of(COUNTER)(call) and call.fd not in written:
            number(77)(value(call))
        return result

    return interposer


@mutation("vm.timer-counter-shared")
def a_counter_is_that_of_all_vms() -> Interposer:
    return once(SET, after("KVM_GET_ONE_REG", lambda call: number(1 << 40)(value(call)), of(COUNTER)), when=_far)


lies(
    "vm.timer-physical-counter",
    cntpct_el0_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(_PHYSICAL)),
    cntvct_el0_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(COUNTER)),
    cntpct_el0_moves_cntvct_el0_too=lambda: once(SET, reading(number(1 << 44), COUNTER), when=of(_PHYSICAL)),
    writing_cntpct_el0_does_nothing=lambda: forget(_PHYSICAL),
    the_guest_has_the_hosts_cntpct_el0=lambda: executed(_MRS_PHYSICAL, values(0, lambda old: 1 << 30)),
    the_guests_cntvct_el0_is_cntpct_el0=lambda: executed(_MRS_CNT, values(0, lambda old: 1 << 44)),
    kvm_reads_the_hosts_cntpct_el0=lambda: reading(number(1 << 30), _PHYSICAL),
    cntpct_el0_is_undefined_for_the_guest=lambda: executed(_MRS_PHYSICAL, values(15, lambda old: 1)),
)
