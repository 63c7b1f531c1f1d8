# SPDX-License-Identifier: Apache-2.0
"""Lies about CET state in copies of a guest: registers that are lost, or not needed, and areas that show them."""

from __future__ import annotations

from tests.mutations.buffers import (
    XSTATE_BV,
    area,
    change_msr,
    entry,
    flip,
    get_msr_now,
    lengthen,
    msr_values,
    set_msr_now,
    xsave_lie,
)
from tests.mutations.cet_guest import in_cet_guest
from tests.mutations.cet_state import get_ssp_now, host_reads, of_ssp, set_ssp_now
from tests.mutations.lies import (
    RUN,
    Proceed,
    Shared,
    after,
    answer,
    before,
    nth,
    once,
)
from tests.mutations.registry import mutation
from tests.mutations.tiles import GP, before_run, faults
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

GET, SET, GET_REG, SET_REG = "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_GET_ONE_REG", "KVM_SET_ONE_REG"
EVENTS, GET_CPUID, SET_XSAVE = "KVM_SET_VCPU_EVENTS", "KVM_GET_CPUID2", "KVM_SET_XSAVE"


def _not_brought(index: int) -> Interposer:
    """An MSR is lost in restoring what was saved."""
    return once(GET, before(SET, change_msr(index, lambda value: 0)))


@mutation("cet.state-live")
def u_cet_is_not_saved() -> Interposer:
    return host_reads(Msr.U_CET, lambda value: 0)


@mutation("cet.state-live")
def s_cet_does_not_come_over() -> Interposer:
    return _not_brought(Msr.S_CET)


@mutation("cet.state-live")
def s_cet_cannot_be_restored() -> Interposer:
    return once(GET, answer(SET, 0, lambda call: len(msr_values(call)) > 1 and Msr.S_CET in dict(msr_values(call))))


@mutation("cet.state-live")
def pl0_ssp_does_not_come_over() -> Interposer:
    return _not_brought(Msr.PL0_SSP)


@mutation("cet.state-live")
def ssp_does_not_come_over() -> Interposer:
    return once(GET_REG, answer(SET_REG, 0, of_ssp))


@mutation("cet.state-live")
def the_copy_runs_with_ssp_an_entry_off() -> Interposer:
    return before_run(4, lambda fd: set_ssp_now(fd, get_ssp_now(fd) + 8))


@mutation("cet.state-live")
def the_copy_runs_without_pl3_ssp() -> Interposer:
    return before_run(4, lambda fd: set_msr_now(fd, Msr.PL3_SSP, 0))


@mutation("cet.state-live")
def the_copy_runs_without_u_cet() -> Interposer:
    return before_run(4, lambda fd: set_msr_now(fd, Msr.U_CET, 0))


def _brings_itself(index: int) -> Interposer:
    """An MSR that was saved once is there after every restore."""
    kept = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal kept
        result = proceed()
        if call.name == GET and result > 0:
            kept = dict(msr_values(call)[:result]).get(index) or kept
        elif call.name == EVENTS and kept:
            set_msr_now(call.fd, index, kept)
        return result

    return interposer


@mutation("cet.state-each-needed")
def u_cet_need_not_be_restored() -> Interposer:
    return _brings_itself(Msr.U_CET)


@mutation("cet.state-each-needed")
def s_cet_need_not_be_restored() -> Interposer:
    return _brings_itself(Msr.S_CET)


@mutation("cet.state-each-needed")
def pl3_ssp_need_not_be_restored() -> Interposer:
    return _brings_itself(Msr.PL3_SSP)


@mutation("cet.state-each-needed", "mig.xss-roundtrip")
def ia32_xss_need_not_be_restored() -> Interposer:
    return _brings_itself(Msr.XSS)


@mutation("cet.state-each-needed")
def ssp_need_not_be_restored() -> Interposer:
    kept = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal kept
        result = proceed()
        if call.name == GET_REG:
            kept = get_ssp_now(call.fd)
        elif call.name == EVENTS:
            set_ssp_now(call.fd, kept)
        return result

    return interposer


@mutation("cet.state-each-needed")
def the_state_does_not_fit_the_guest_itself_any_more() -> Interposer:
    # Runs: the preparation and the guest, then preparation and run of each of the five copies, then the guest.
    return before_run(13, lambda fd: set_ssp_now(fd, 0))


@mutation("mig.xss-roundtrip")
def ia32_xss_is_not_saved() -> Interposer:
    return host_reads(Msr.XSS, lambda value: 0)


@mutation("mig.xss-roundtrip")
def ia32_xss_does_not_come_over() -> Interposer:
    return _not_brought(Msr.XSS)


@mutation("mig.xss-roundtrip")
def xrstors_works_without_ia32_xss() -> Interposer:
    return in_cet_guest("xrstors", faults(0))


@mutation("mig.xss-roundtrip")
def xrstors_faults_in_the_copy() -> Interposer:
    return in_cet_guest("xrstors", faults(1, GP))


@mutation("xsave.no-supervisor")
def the_area_names_user_cet() -> Interposer:
    return xsave_lie(flip(XSTATE_BV + 1, 1 << 3))


@mutation("xsave.no-supervisor")
def the_area_names_supervisor_cet() -> Interposer:
    return xsave_lie(flip(XSTATE_BV + 1, 1 << 4))


@mutation("xsave.no-supervisor")
def the_area_has_a_shadow_stack_pointer() -> Interposer:
    def change(call: Call) -> None:
        pointer = get_msr_now(call.fd, Msr.PL3_SSP)
        area(call)[3000:3008] = pointer.to_bytes(8, "little")

    return xsave_lie(change)


@mutation("xsave.no-supervisor")
def the_area_is_larger_with_supervisor_state() -> Interposer:
    return xsave_lie(lengthen(64))


@mutation("xsave.set-preserves-supervisor")
def an_area_without_components_resets_u_cet() -> Interposer:
    return after(SET_XSAVE, lambda call: set_msr_now(call.fd, Msr.U_CET, 0))


@mutation("xsave.set-preserves-supervisor")
def an_area_without_components_resets_pl3_ssp() -> Interposer:
    return after(SET_XSAVE, lambda call: set_msr_now(call.fd, Msr.PL3_SSP, 0))


@mutation("xsave.set-preserves-supervisor")
def an_area_without_components_changes_pl1_ssp() -> Interposer:
    return after(SET_XSAVE, lambda call: set_msr_now(call.fd, Msr.PL1_SSP, 0x1000))


@mutation("xsave.set-preserves-supervisor")
def the_guest_runs_without_user_state_behind_an_area_without_components() -> Interposer:
    return once(SET_XSAVE, before(RUN, lambda call: set_msr_now(call.fd, Msr.PL3_SSP, 0), nth(1)))


@mutation("setcpuid.runtime-size-0xd1")
def the_compacted_size_does_not_follow_ia32_xss() -> Interposer:
    sizes: list[int] = []

    def change(call: Call) -> None:
        found = entry(call, 0xD, 1)
        sizes.append(found.ebx)
        found.ebx = sizes[0]

    return after(GET_CPUID, change)


@mutation("setcpuid.runtime-size-0xd1")
def the_compacted_size_never_shrinks() -> Interposer:
    sizes: list[int] = []

    def change(call: Call) -> None:
        found = entry(call, 0xD, 1)
        sizes.append(found.ebx)
        found.ebx = max(sizes)

    return after(GET_CPUID, change)


@mutation("setcpuid.runtime-size-0xd1")
def the_compacted_size_is_8_bytes_short_with_supervisor_cet() -> Interposer:
    sizes: list[int] = []

    def change(call: Call) -> None:
        found = entry(call, 0xD, 1)
        sizes.append(found.ebx)
        found.ebx -= 8 if found.ebx > sorted(set(sizes))[:2][-1] else 0

    return after(GET_CPUID, change)


@mutation("setcpuid.runtime-size-0xd1")
def the_guest_cannot_set_ia32_xss() -> Interposer:
    def matches(guest: Shared) -> bool:
        return guest.get("params", 1) == 1 << 11

    return in_cet_guest("wrmsr", faults(1, GP), matches)
