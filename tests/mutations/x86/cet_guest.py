# SPDX-License-Identifier: Apache-2.0
"""Lies about shadow stacks and indirect branch tracking at work in the guest, and over exits and INIT."""

from __future__ import annotations

import errno

from tests.mutations.lies import (
    RUN,
    Proceed,
    Shared,
    after,
    after_run,
    before,
    called,
    given,
    kvm_table,
    nth,
    once,
    opposite,
    toggle,
)
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import set_msr_now, xcr0_reads
from tests.mutations.x86.lies import (
    GP,
    UD,
    after_init,
    before_entry,
    faults,
    get_ssp_now,
    guest_writes,
    host_reads,
    in_cet_guest,
    set_in_guest,
    set_ssp_now,
    ssp_reads,
)
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86 import boot
from vmm.x86.msr_names import Msr

SET_SREGS, GET_SREGS = "KVM_SET_SREGS", "KVM_GET_SREGS"
CET, WP, WRITES, TRACKING = 1 << 23, 1 << 16, 2, 4


lies(
    "cet.shadow-stack-calls",
    "cet.shadow-stack-cp",
    user_shadow_stacks_are_not_in_effect=lambda: before(RUN, lambda call: set_msr_now(call.fd, Msr.U_CET, 0)),
)

lies(
    "cet.shadow-stack-calls",
    an_exit_turns_the_user_shadow_stack_off=lambda: after(
        RUN, lambda call: set_msr_now(call.fd, Msr.U_CET, 0), nth(2)
    ),
    an_exit_moves_ssp_by_an_entry=lambda: after(
        RUN, lambda call: set_ssp_now(call.fd, get_ssp_now(call.fd) - 8), nth(2)
    ),
    the_host_reads_ssp_as_the_guest_began=lambda: ssp_reads(lambda value: boot.USER_SHADOW_STACK_TOP),
)


@mutation("cet.shadow-stack-calls")
def an_entry_of_the_shadow_stack_is_no_return_address() -> Interposer:
    def change(guest: Shared) -> None:
        guest.at(boot.USER_SHADOW_STACK_TOP - 16)[0] = 0x1000

    return in_cet_guest("descend", change)


lies(
    "cet.shadow-stack-calls",
    a_return_is_missing=lambda: in_cet_guest("descend", lambda guest: guest.set("values", 11)),
)

lies(
    "cet.shadow-stack-cp",
    a_changed_return_address_is_gp=lambda: in_cet_guest("smash", lambda guest: guest.set("vector", GP)),
    a_near_return_has_the_error_code_of_a_far_one=lambda: in_cet_guest("smash", lambda guest: guest.set("error", 2)),
    the_fault_is_at_the_wrong_return_address=lambda: in_cet_guest(
        "smash", lambda guest: guest.set("rip", guest.get("rip") + 1)
    ),
    shadow_stacks_are_always_in_effect=lambda: before_entry("smash", set_in_guest(Msr.U_CET, 1)),
)

lies(
    "cet.branch-tracking-cp",
    branches_are_not_tracked=lambda: before_entry("branch", set_in_guest(Msr.U_CET, 0)),
    branches_are_always_tracked=lambda: before_entry("branch", set_in_guest(Msr.U_CET, TRACKING)),
    # ENDBR32 is none in 64-bit mode.
    endbr64_is_not_recognised=lambda: before_entry("branch", lambda guest: guest.poke("with_endbr", 3)),
    a_missing_endbr64_has_the_error_code_of_a_return=lambda: in_cet_guest(
        "branch", lambda guest: guest.set("error", 1)
    ),
    the_fault_is_behind_the_target=lambda: in_cet_guest(
        "branch", lambda guest: guest.set("rip", guest.get("rip") + 5)
    ),
)

lies(
    "cet.survives-exits",
    an_exit_loses_pl1_ssp=lambda: after_run(lambda fd: set_msr_now(fd, Msr.PL1_SSP, 0), ticks=1),
    an_exit_loses_the_interrupt_table=lambda: after_run(lambda fd: set_msr_now(fd, Msr.INT_SSP_TAB, 0), ticks=1),
    an_exit_loses_the_enable_bit_of_shadow_stack_writes=lambda: after_run(
        lambda fd: set_msr_now(fd, Msr.U_CET, 1), ticks=1
    ),
    an_exit_replaces_s_cet_by_u_cet=lambda: after_run(lambda fd: set_msr_now(fd, Msr.S_CET, 1 | WRITES), ticks=1),
    the_guests_last_exit_replaces_pl0_ssp=lambda: in_cet_guest("descend", set_in_guest(Msr.PL0_SSP, 0x1000)),
)


def _writes(index: int, value: int, number: int, vector: int = GP) -> Interposer:
    """Let one WRMSR of the guest fault, or not."""
    return guest_writes("cet", index, value, number, vector)


lies(
    "cet.guest-host-agree",
    the_guest_cannot_write_u_cet=lambda: _writes(Msr.U_CET, 0x3D if kvm_table().has("IBT") else 3, 1),
    the_host_does_not_see_what_the_guest_wrote_to_pl3_ssp=lambda: host_reads(Msr.PL3_SSP, lambda value: 0),
    the_guest_does_not_see_what_the_host_wrote_to_the_interrupt_table=lambda: in_cet_guest(
        "rdmsr", lambda guest: guest.set("values", 0x7890), given(Msr.INT_SSP_TAB)
    ),
    the_guest_can_set_a_reserved_bit_of_s_cet=lambda: _writes(Msr.S_CET, 1 << 9, 0),
    the_guest_can_set_an_odd_pl3_ssp=lambda: _writes(Msr.PL3_SSP, 1, 0),
    a_non_canonical_pl0_ssp_is_ud=lambda: _writes(Msr.PL0_SSP, 1 << 63, 1, UD),
)

lies(
    "cet.ssp-not-a-guest-msr",
    the_guest_can_read_kvms_own_number_for_ssp=lambda: in_cet_guest("rdmsr", faults(0)),
    the_guest_can_write_kvms_own_number_for_ssp=lambda: in_cet_guest("wrmsr", faults(0)),
)

lies(
    "cet.cr4-wp",
    write_protection_can_be_turned_off_under_cr4_cet=lambda: in_cet_guest("write_cr0", faults(0)),
    cr4_cet_needs_no_write_protection=lambda: in_cet_guest("write_cr4", faults(0)),
    a_refused_cr4_cet_is_set=lambda: once(
        SET_SREGS, once(RUN, after(GET_SREGS, toggle("cr4", CET))), when=_hole_closed
    ),
)


def _hole_closed(call: Call) -> bool:
    """Met by control registers without write protection and without CET."""
    return not call.argument.cr4 & CET and not call.argument.cr0 & WP


def _hole(call: Call) -> bool:
    """Met by control registers that contradict each other."""
    return bool(call.argument.cr4 & CET) and not call.argument.cr0 & WP


lies(
    "cet.sregs-wp-hole",
    the_contradiction_has_the_other_result=lambda: opposite(SET_SREGS, errno.EINVAL, _hole),
)


@mutation("cet.sregs-wp-hole")
def the_contradiction_ends_in_another_way() -> Interposer:
    contradicted = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal contradicted
        if call.name == SET_SREGS and _hole(call):
            contradicted = True
            result = proceed()
            return -errno.EPERM if result < 0 else result
        result = proceed()
        if contradicted and called(call) == RUN:
            call.argument.run.exit_reason = lib.KVM_EXIT_SHUTDOWN
        return result

    return interposer


lies(
    "cet.init",
    init_leaves_u_cet=lambda: after_init(host_reads(Msr.U_CET, lambda value: 1)),
    init_leaves_s_cet=lambda: after_init(host_reads(Msr.S_CET, lambda value: 1)),
    init_leaves_pl2_ssp=lambda: after_init(host_reads(Msr.PL2_SSP, lambda value: 0x3000)),
    init_leaves_the_interrupt_table=lambda: after_init(host_reads(Msr.INT_SSP_TAB, lambda value: 0x5000)),
    init_leaves_ssp=lambda: after_init(ssp_reads(lambda value: 0x6000)),
    init_resets_ia32_xss=lambda: after_init(host_reads(Msr.XSS, lambda value: 0)),
    init_resets_xcr0_but_for_x87=lambda: after_init(xcr0_reads(1)),
)
