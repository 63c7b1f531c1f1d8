# SPDX-License-Identifier: Apache-2.0
"""Lies about CET for a guest that has none."""

from __future__ import annotations

import errno

from tests.mutations.lies import (
    Shared,
    accept,
    after,
    after_entry,
    answer,
    drift,
    kvm_table,
    once,
    refuse,
    succeed_with,
    toggle,
)
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import change_list, msr_values, of_msr, sets
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

CET = 1 << 23
SET_SREGS, GET_SREGS, GET_LIST, SET_MSRS = "KVM_SET_SREGS", "KVM_GET_SREGS", "KVM_GET_REG_LIST", "KVM_SET_MSRS"


def _with_cet(call: Call) -> bool:
    return bool(call.argument.cr4 & CET)


lies(
    "cet.cr4-reserved",
    the_guest_can_set_cr4_cet=lambda: after_entry("write_cr4", lambda guest: guest.set("values", 0, 15)),
)


@mutation("cet.cr4-reserved")
def cr4_cet_is_ud_in_the_guest() -> Interposer:
    def change(guest: Shared) -> None:
        guest.set("vector", 6)

    return after_entry("write_cr4", change)


lies(
    "cet.cr4-reserved",
    the_host_can_set_cr4_cet=lambda: accept(SET_SREGS, _with_cet),
    cr4_cet_is_eperm_for_the_host=lambda: drift(SET_SREGS, errno.EPERM, _with_cet),
    a_refused_cr4_cet_stays=lambda: once(SET_SREGS, after(GET_SREGS, toggle("cr4", CET)), refused=True),
)

lies(
    "cet.msr-list",
    one_shadow_stack_pointer_is_listed_against_cpuid=lambda: change_list(Msr.PL1_SSP),
    the_user_cet_msr_is_listed_against_cpuid=lambda: change_list(Msr.U_CET),
    ia32_xss_or_the_supervisor_cet_msr_is_listed_against_cpuid=lambda: change_list(
        Msr.XSS if kvm_table().xss else Msr.S_CET
    ),
)

lies(
    "cet.reg-list",
    a_shadow_stack_pointer_is_listed_without_shadow_stacks=lambda: after(GET_LIST, toggle("n", 1)),
    an_empty_list_is_e2big=lambda: refuse(GET_LIST, errno.E2BIG),
    a_bad_pointer_to_a_list_is_ignored=lambda: accept(GET_LIST),
    a_bad_pointer_to_a_list_is_einval=lambda: drift(GET_LIST, errno.EINVAL),
)

lies(
    "cet.xss-read-write-asymmetry",
    writing_0_to_ia32_xss_has_the_other_result=lambda: succeed_with(
        SET_MSRS, lambda call, done: 1 - done, sets(Msr.XSS, 0)
    ),
    ia32_xss_takes_cet_without_xsaves=lambda: answer(
        SET_MSRS, 1, lambda call: of_msr(Msr.XSS)(call) and msr_values(call)[0][1] > 0
    ),
)

lies(
    "cet.guest-only-xfeature",
    supervisor_cet_is_among_the_hosts_own_components=lambda: after("ARCH_GET_XCOMP_SUPP", toggle("", 1 << 12)),
    supervisor_cet_is_among_the_hosts_permissions=lambda: after("ARCH_GET_XCOMP_PERM", toggle("", 1 << 12)),
)
