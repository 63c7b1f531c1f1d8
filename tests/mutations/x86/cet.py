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
from tests.mutations.registry import mutation
from tests.mutations.x86.buffers import change_list, msr_values, of_msr
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

CET = 1 << 23
SET_SREGS, GET_SREGS, GET_LIST, SET_MSRS = "KVM_SET_SREGS", "KVM_GET_SREGS", "KVM_GET_REG_LIST", "KVM_SET_MSRS"


def _with_cet(call: Call) -> bool:
    return bool(call.argument.cr4 & CET)


@mutation("cet.cr4-reserved")
def the_guest_can_set_cr4_cet() -> Interposer:
    return after_entry("write_cr4", lambda guest: guest.set("values", 0, 15))


@mutation("cet.cr4-reserved")
def cr4_cet_is_ud_in_the_guest() -> Interposer:
    def change(guest: Shared) -> None:
        guest.set("vector", 6)

    return after_entry("write_cr4", change)


@mutation("cet.cr4-reserved")
def the_host_can_set_cr4_cet() -> Interposer:
    return accept(SET_SREGS, _with_cet)


@mutation("cet.cr4-reserved")
def cr4_cet_is_eperm_for_the_host() -> Interposer:
    return drift(SET_SREGS, errno.EPERM, _with_cet)


@mutation("cet.cr4-reserved")
def a_refused_cr4_cet_stays() -> Interposer:
    return once(SET_SREGS, after(GET_SREGS, toggle("cr4", CET)), refused=True)


@mutation("cet.msr-list")
def one_shadow_stack_pointer_is_listed_against_cpuid() -> Interposer:
    return change_list(Msr.PL1_SSP)


@mutation("cet.msr-list")
def the_user_cet_msr_is_listed_against_cpuid() -> Interposer:
    return change_list(Msr.U_CET)


@mutation("cet.msr-list")
def ia32_xss_or_the_supervisor_cet_msr_is_listed_against_cpuid() -> Interposer:
    return change_list(Msr.XSS if kvm_table().xss else Msr.S_CET)


@mutation("cet.reg-list")
def a_shadow_stack_pointer_is_listed_without_shadow_stacks() -> Interposer:
    return after(GET_LIST, toggle("n", 1))


@mutation("cet.reg-list")
def an_empty_list_is_e2big() -> Interposer:
    return refuse(GET_LIST, errno.E2BIG)


@mutation("cet.reg-list")
def a_bad_pointer_to_a_list_is_ignored() -> Interposer:
    return accept(GET_LIST)


@mutation("cet.reg-list")
def a_bad_pointer_to_a_list_is_einval() -> Interposer:
    return drift(GET_LIST, errno.EINVAL)


@mutation("cet.xss-read-write-asymmetry")
def writing_0_to_ia32_xss_has_the_other_result() -> Interposer:
    return succeed_with(SET_MSRS, lambda call, done: 1 - done, lambda call: msr_values(call) == [(Msr.XSS, 0)])


@mutation("cet.xss-read-write-asymmetry")
def ia32_xss_takes_cet_without_xsaves() -> Interposer:
    return answer(SET_MSRS, 1, lambda call: of_msr(Msr.XSS)(call) and msr_values(call)[0][1] > 0)


@mutation("cet.guest-only-xfeature")
def supervisor_cet_is_among_the_hosts_own_components() -> Interposer:
    return after("ARCH_GET_XCOMP_SUPP", toggle("", 1 << 12))


@mutation("cet.guest-only-xfeature")
def supervisor_cet_is_among_the_hosts_permissions() -> Interposer:
    return after("ARCH_GET_XCOMP_PERM", toggle("", 1 << 12))
